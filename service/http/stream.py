"""Streams of server-sent events: how one ends an event, and what makes the engine's bytes into the client's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.errors import HatrackError

END = b"\n\n"
"""Ends an event."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request; ``exact`` is False where a stream was cut before the engine had counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    exact: bool = True


class Relay(Protocol):
    """Makes a stream's bytes into those for the client; see ``service.inference.relay.EventRelay``."""

    @property
    def done(self) -> bool:
        """The engine has sent its last event."""

    @property
    def error(self) -> bytes | None:
        """The engine's error event."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that the client may have now: whole events only."""

    def counted(self) -> Usage | None:
        """The engine's count, or the best guess at it."""

    def error_event(self, error: HatrackError, request_id: str, /) -> bytes:
        """The event that tells the client of an error."""
