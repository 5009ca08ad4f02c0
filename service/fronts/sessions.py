"""The fronts of a gateway: who is there, and what each has taken of keys' limits for the requests that it has open."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.metrics_core import Metric as Family

from service.access.authentication import Authenticator
from service.access.limits import KeyLimiter, Reservation
from service.errors import BadRequest, HatrackError, to_hatrack_error
from service.fronts.wire import Operation
from service.http.peer_errors import dump_error
from service.telemetry import metrics

GRACE_S: Final = 8.0
"""How long a front that says nothing keeps what it has taken, s: then it is settled as if it had been used."""
LATE_S: Final = 1.0
"""A timer that is so late says that this process stood still, and has not read yet what fronts said meanwhile."""
STOPPED_S: Final = 3600.0
"""For how long a front that was stopped on purpose is counted, s: as far as the alert HatrackFrontLost looks back."""
MAX_OPEN: Final = 100_000
MAX_REMEMBERED: Final = 1000
"""Fronts that are gone and may come back, whose batches are remembered."""
_LOG: Final = logging.getLogger("hatrack.fronts")


@dataclass
class FrontSession:
    """One start of one front. ``since`` is in Unix seconds."""

    id: str
    name: str
    since: float
    is_first: bool = True
    """This gateway has not settled requests of the front's before: what it holds was taken from a former gateway."""
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    feeds: int = 0
    was_connected: bool = False
    reservations: dict[int, tuple[Reservation, int]] = field(default_factory=dict)
    """By the front's number of the request: what was taken, and how many tokens of it."""
    leaving: asyncio.TimerHandle | None = None
    is_gone: bool = False
    """It says nothing any more: its feed, which may be open still, is over."""


class FrontSessions:
    """All fronts that have asked for anything lately.

    Args:
        authenticator: Knows the keys and their limits.
        limiter: Holds them to these.
    """

    def __init__(self, authenticator: Authenticator, limiter: KeyLimiter) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._sessions: dict[str, FrontSession] = {}
        self._done: OrderedDict[str, int] = OrderedDict()
        """The number of each front's last batch of operations."""
        self._stopped: deque[float] = deque()
        """When fronts were stopped on purpose that no others have replaced (monotonic), the oldest first."""

    @property
    def connected(self) -> list[FrontSession]:
        """Those that read their feed now, the oldest first."""
        return [session for session in self._sessions.values() if session.feeds]

    @contextmanager
    def feeding(self, front: str, name: str) -> Iterator[FrontSession]:
        """A front reads its feed as long as this is open."""
        session = self.session(front, name)
        if session.is_first and not session.was_connected and self._stopped:
            self._stopped.popleft()
        session.feeds, session.was_connected = session.feeds + 1, True
        _LOG.info("a front is connected", extra={"front": name, "session": front[:8]})
        try:
            yield session
        finally:
            session.feeds -= 1
            if not session.is_gone:
                self._leave_later(session)
            _LOG.info("a front is no longer connected", extra={"front": name, "session": front[:8]})

    def session(self, front: str, name: str) -> FrontSession:
        """The session of a front's id, which has said something; without a further word it is over after a while."""
        session = self._sessions.get(front)
        if session is None:
            session = self._sessions[front] = FrontSession(front, name, time.time(), front not in self._done)
        self._leave_later(session)
        return session

    def _leave_later(self, session: FrontSession) -> None:
        if session.leaving is not None:
            session.leaving.cancel()
        loop = asyncio.get_running_loop()
        due = loop.time() + GRACE_S
        session.leaving = loop.call_at(due, self._leave, session, due)

    def _leave(self, session: FrontSession, due: float) -> None:
        session.leaving = None
        if asyncio.get_running_loop().time() > due + LATE_S:
            self._leave_later(session)
            return
        self._end(session)

    def leave(self, session: FrontSession) -> None:
        """A front has been stopped on purpose; its requests have ended."""
        if session.leaving is not None:
            session.leaving.cancel()
        if session.was_connected:
            self._stopped.append(time.monotonic())
        self._end(session)
        _LOG.info("a front has been stopped", extra={"front": session.name, "session": session.id[:8]})

    def _end(self, session: FrontSession) -> None:
        session.is_gone = True
        for reservation, charged in session.reservations.values():
            reservation.close(charged)
        if session.reservations:
            _LOG.warning(
                "a front is gone; its open requests were settled by their estimates",
                extra={"front": session.name, "requests": len(session.reservations)},
            )
        self._sessions.pop(session.id, None)

    # metrics

    name = "fronts"

    @property
    def stopped(self) -> int:
        """How many fronts were stopped on purpose within the last STOPPED_S, and not replaced."""
        while self._stopped and self._stopped[0] < time.monotonic() - STOPPED_S:
            self._stopped.popleft()
        return len(self._stopped)

    async def families(self) -> Iterator[Family]:
        """How many fronts are connected, and fewer than before on purpose."""
        return iter([metrics.FRONTS.value(len(self.connected)), metrics.FRONTS_STOPPED.value(self.stopped)])

    # limits

    def operate_once(self, session: FrontSession, batch: dict[str, Any]) -> list[dict[str, Any] | None]:
        """Do a numbered batch; one that was done before is answered with nothing.

        Raises:
            BadRequest: It is malformed; what comes before the fault was done, and is not done again.
        """
        try:
            number, operations = int(batch["number"]), list(batch["operations"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"a malformed batch of operations: {type(error).__name__}") from error
        if number <= self._done.get(session.id, 0):
            return [None] * len(operations)
        self._done[session.id] = number
        self._done.move_to_end(session.id)
        if len(self._done) > MAX_REMEMBERED:
            self._done.popitem(last=False)
        return self.operate(session, operations)

    def operate(self, session: FrontSession, operations: list[Operation]) -> list[dict[str, Any] | None]:
        """Do what a front asks, in order; each gets an answer of its own.

        Raises:
            BadRequest: Something in it is no operation; those before it were done.
        """
        return [self._answer(session, operation) for operation in operations]

    def _answer(self, session: FrontSession, operation: Operation) -> dict[str, Any] | None:
        try:
            kind, *rest = operation
            if kind == "take":
                return self._shown(self._take(session, *rest))
            if kind == "more":
                return self._shown(self._more(session, *rest))
            if kind == "settle":
                self._settle(session, *rest)
            elif kind == "hold":
                self._hold(session, *rest)
            elif kind == "count":
                self._limiter.enter(self._authenticator.caller_with_id(*rest)).close(None)
            elif kind == "spent":
                self._limiter.note_spent(self._authenticator.caller_with_id(*rest[:2]), int(rest[2]))
            else:
                raise ValueError(kind)
        except HatrackError as error:
            return {"error": dump_error(error)}
        except (TypeError, ValueError) as error:
            raise BadRequest(f"a malformed operation: {str(error)[:100]}") from error
        return None

    def _take(self, session: FrontSession, number: int, key_id: str, project: str, tokens: int) -> Reservation:
        known = session.reservations.get(number)
        if known is not None:  # the answer to the first time was lost
            return known[0]
        if len(session.reservations) >= MAX_OPEN:
            raise BadRequest(f"a front has more than {MAX_OPEN} requests open")
        reservation = self._limiter.enter(self._authenticator.caller_with_id(key_id, project))
        try:
            reservation.charge(int(tokens))
        except BaseException:
            reservation.close(None)
            raise
        session.reservations[number] = (reservation, int(tokens))
        return reservation

    def _hold(self, session: FrontSession, number: int, key_id: str, project: str, tokens: int) -> None:
        if session.is_first and number not in session.reservations and len(session.reservations) < MAX_OPEN:
            reservation = self._limiter.hold(self._authenticator.caller_with_id(key_id, project), int(tokens))
            session.reservations[number] = (reservation, int(tokens))

    def _more(self, session: FrontSession, number: int, tokens: int) -> Reservation | None:
        reservation, charged = session.reservations.get(number, (None, 0))
        if reservation is not None and tokens > charged:
            reservation.charge(int(tokens) - charged)
            session.reservations[number] = (reservation, int(tokens))
        return reservation

    def _settle(
        self, session: FrontSession, number: int, tokens: int | None, key_id: str = "", project: str = ""
    ) -> None:
        reservation, _ = session.reservations.pop(number, (None, 0))
        if reservation is None and session.is_first and tokens and key_id:  # taken in by a former gateway
            reservation = self._limiter.hold(self._authenticator.caller_with_id(key_id, project), 0)
        if reservation is not None:
            reservation.close(tokens)

    def _shown(self, reservation: Reservation | None) -> dict[str, Any]:
        headers = [] if reservation is None else reservation.headers()
        return {"headers": [[name.decode(), value] for name, value in headers]}


def refusal(error: Exception) -> dict[str, Any]:
    """Any error as a front reads it."""
    return {"error": dump_error(to_hatrack_error(error, None))}
