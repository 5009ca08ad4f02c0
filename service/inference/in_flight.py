"""How many requests a gateway works on at once, and of whom."""

from __future__ import annotations

import math
from typing import Final

from service.errors import Unavailable

OVERLOAD_RETRY_S = 1
RESERVED_IN_FLIGHT: Final = 0.25
"""Part of HATRACK_MAX_IN_FLIGHT that is added for projects with few requests in flight,"""
FEW_IN_FLIGHT: Final = 0.125
"""that is fewer than this part."""


class InFlight:
    """The requests in flight. A project that has few of them may go beyond the maximum by a part of it, so that
    nobody's flood, of whatever kinds of requests, keeps others out.

    Args:
        max_requests: The maximum (HATRACK_MAX_IN_FLIGHT).
    """

    __slots__ = ("_few", "_max_requests", "_max_with_reserve", "_of_project", "count")

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._max_with_reserve = max_requests + math.ceil(max_requests * RESERVED_IN_FLIGHT)
        self._few = max_requests * FEW_IN_FLIGHT
        self._of_project: dict[str, int] = {}
        self.count = 0

    def enter(self, project: str) -> RequestInFlight:
        """Count a request as in flight, until the context that is returned is left.

        Raises:
            Unavailable: There are too many.
        """
        of_project = self._of_project.get(project, 0)
        if self.count >= (self._max_with_reserve if of_project < self._few else self._max_requests):
            raise Unavailable(
                f"{self.count} requests are in flight, the maximum (HATRACK_MAX_IN_FLIGHT); retry later",
                retry_after=OVERLOAD_RETRY_S,
                code="overloaded",
            )
        self.count += 1
        self._of_project[project] = of_project + 1
        return RequestInFlight(self, project)

    def leave(self, project: str) -> None:
        """A request of the project is over."""
        self.count -= 1
        of_project = self._of_project[project] - 1
        if of_project:
            self._of_project[project] = of_project
        else:
            del self._of_project[project]


class RequestInFlight:
    """A context in which one request is in flight."""

    __slots__ = ("_project", "_requests")

    def __init__(self, requests: InFlight, project: str) -> None:
        self._requests = requests
        self._project = project

    def __enter__(self) -> None:
        """It is in flight already."""

    def __exit__(self, *_: object) -> None:
        self._requests.leave(self._project)
