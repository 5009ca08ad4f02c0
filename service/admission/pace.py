"""How long callers' requests stay in the engine, and what wait follows from that for those who queue."""

from __future__ import annotations

import math
from typing import Final

MAX_RETRY_S: Final = 60
_STAY_AVERAGE: Final = 0.03
"""Weight of the newest time in the engine."""
_MAX_SURPRISE: Final = 4.0
"""A time in the engine counts as at most so many times the average: a single long one must not look like a slow engine,
and a slow engine is noticed within some thirty requests all the same."""
_SHORT_S: Final = 1.0
"""A time in the engine up to this, s, is no surprise."""


class Pace:
    """The recent pace of callers' requests.

    Args:
        common: The policy's common places, the initial estimate of how many requests are in the engine at once.
    """

    __slots__ = ("_count", "_together", "stay_s")

    def __init__(self, common: int) -> None:
        self.stay_s = 0.0
        """Moving average of callers' time in the engine, s."""
        self._count = 0
        self._together = float(common)
        """Moving average of the callers' requests in the engine while others wait."""

    def learn(self, stay_s: float, in_flight: int, *, others_wait: bool) -> None:
        """Take in how long a caller's request has been in the engine, which it is about to leave.

        Args:
            in_flight: Callers' requests in the engine, this one included.
        """
        self._count += 1
        weight = 1 / self._count
        if weight < _STAY_AVERAGE:
            weight = _STAY_AVERAGE
            if stay_s > _SHORT_S:
                stay_s = min(stay_s, max(_SHORT_S, _MAX_SURPRISE * self.stay_s))
        self.stay_s += weight * (stay_s - self.stay_s)
        if others_wait:
            self._together += _STAY_AVERAGE * (in_flight - self._together)

    def wait_s(self, ahead: int, in_flight: int) -> float:
        """About how long it takes until ``ahead`` requests have left, s.

        By Little's law, from how long each stays and how many are in the engine: as many as there usually are while
        others wait, even if it is only being filled, which takes as long as their prompts. The times between departures
        say less: places often become free together.
        """
        return ahead * self.stay_s / max(1.0, in_flight, self._together)

    def retry_after(self, ahead: int, in_flight: int) -> int:
        """Seconds until ``ahead`` requests have left; 1 to 60."""
        return max(1, min(MAX_RETRY_S, math.ceil(self.wait_s(ahead, in_flight))))
