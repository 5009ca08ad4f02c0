"""Server-sent events: the protocol of the relays that turn the engine's stream into the client's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.errors import HatrackError

END = b"\n\n"
"""Ends an event."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one request; ``exact`` is False if the stream was cut before the engine reported its count."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    exact: bool = True


class Relay(Protocol):
    """Turns the engine's stream into the client's; see ``service.inference.relay.EventRelay``."""

    @property
    def done(self) -> bool:
        """The engine has sent its last event."""

    @property
    def error(self) -> bytes | None:
        """The engine's error event."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to send to the client now; complete events only."""

    def counted(self) -> TokenUsage | None:
        """The engine's token count, or an estimate of it."""

    def error_event(self, error: HatrackError, request_id: str, /) -> bytes:
        """The event that tells the client of an error."""
