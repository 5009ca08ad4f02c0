"""What the data path needs of an engine client; `service.engine.client.EngineClient` is the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class UpstreamResponse(Protocol):
    """The engine's answer to one request; whoever sent it closes it."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The engine's headers; none of them reaches a client."""

    async def pass_to(self, take: Callable[[bytes], bool]) -> bool:
        """Hand the body to ``take`` piece by piece, as it arrives, until it returns False; whether all of it was.

        Raises:
            HatrackError: The engine went away in the middle.
            Exception: What ``take`` raises.
        """

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            HatrackError: The engine went away in the middle.
        """

    def close(self) -> None:
        """Release the connection; before the body's end this aborts the request in the engine."""


class Upstream(Protocol):
    """Sends requests to the engine; one that was sent is never sent again."""

    @property
    def in_flight(self) -> int:
        """Requests that are open now."""

    async def send(self, path: str, body: bytes, headers: dict[str, str]) -> UpstreamResponse:
        """POST ``body`` to ``path``; the response must be closed.

        Raises:
            EngineUnavailable: There is no engine to ask now; at once.
        """
