"""What the data path needs of the rooms around it; the real ones are in `service.access`, `service.admission` and
`service.telemetry`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from service.access.caller import Caller
from service.admission.ticket import Ticket
from service.errors import HatrackError
from service.inference.relay import Usage


class Lease(Protocol):
    """One request's share of its key's limits, from its arrival to its end."""

    def charge(self, tokens: int) -> None:
        """Take the request's estimated tokens.

        Raises:
            RateLimited: The key's tokens do not reach for them.
        """

    def headers(self) -> list[tuple[bytes, str]]:
        """OpenAI's rate-limit headers, as of now; none where the key has no limits."""

    def close(self, tokens: int | None) -> None:
        """End it: ``tokens`` were used in truth; None: nothing reached the engine, the charge is given back."""


class Limiter(Protocol):
    """Holds callers to their keys' limits."""

    def enter(self, caller: Caller) -> Lease:
        """Count a request that has just arrived.

        Raises:
            RateLimited: Too many requests, a minute or at once, or the day's tokens are spent.
        """


class Pass(Protocol):
    """Leave to be in the engine."""

    def first_token(self) -> None:
        """The engine has begun to answer: it has read the prompt. Where nobody sees that, nobody says it."""

    def leave(self, tokens: int | None) -> None:
        """The request has left the engine; ``tokens`` it used in truth, None where nothing reached the engine."""


class Gate(Protocol):
    """Admission: decides who goes to the engine next."""

    async def enter(self, ticket: Ticket, deadline: float) -> Pass:
        """Wait for a place.

        Args:
            deadline: On the event loop's clock, seconds; a request that is not let in by then is refused.

        Raises:
            RateLimited: The caller's own share of the queue is full.
            Unavailable: The queue is full, or the deadline has passed in it.
        """


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

    def last_words(self, error: HatrackError, request_id: str, /) -> bytes:
        """The event that tells the client of an error."""


class Span(Protocol):
    """The trace of one request."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What goes to the engine so that its spans join this trace."""


class Tracer(Protocol):
    """Begins traces; the account ends them."""

    def begin(self, route: str, headers: Mapping[str, str], request_id: str) -> Span | None:
        """A new span for a request with these headers (a `traceparent` among them is its parent); None: not traced."""
