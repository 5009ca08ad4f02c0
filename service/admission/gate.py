"""The gate on the event loop: waiting, deadlines, and clients that leave while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.admission.entry import Entry, Stage
from service.admission.policy import Policy
from service.admission.scheduler import Scheduler
from service.admission.snapshot import Snapshot, take
from service.admission.ticket import Ticket
from service.engine.residency import Residency
from service.engine.watched import EngineState
from service.errors import EngineUnavailable, HatrackError, Unavailable


class Pass:
    """A place in the engine; give it back by `leave`, once or more."""

    __slots__ = ("_entry", "_gate")

    def __init__(self, gate: Gate, entry: Entry) -> None:
        self._gate = gate
        self._entry = entry

    def first_token(self) -> None:
        """The engine has answered with something: its prompt has been read."""
        self._gate.first_token(self._entry)

    def leave(self, tokens: int | None, *, answered: bool = True) -> None:
        """The request has left the engine.

        Args:
            tokens: What it used in truth, or is charged with; None where nothing was sent to the engine.
            answered: The engine took it and answered, so its adapter is loaded.
        """
        self._gate.leave(self._entry, tokens, answered=answered)


class Gate:
    """Admission to the engine.

    Args:
        policy: How it decides.
        residency: What is known of the adapters in the engine's memory; None: nothing.
    """

    def __init__(self, policy: Policy, residency: Residency | None = None) -> None:
        self.scheduler = Scheduler(policy, residency.is_cold if residency is not None else None)
        self._residency = residency
        self._closed: Callable[[], HatrackError] | None = None
        self._wake: asyncio.TimerHandle | None = None

    async def enter(self, ticket: Ticket, deadline: float) -> Pass:
        """Wait for a place.

        Args:
            deadline: On the event loop's clock, s.

        Raises:
            RateLimited: The caller's own share of the queue is full.
            Unavailable: The queue is full, or the deadline has passed in it.
            EngineUnavailable: There is no engine, or it went while the request waited.
        """
        if self._closed is not None:
            raise self._closed()
        loop = asyncio.get_running_loop()
        now = loop.time()
        entry = self.scheduler.offer(ticket, now)
        if entry.stage is Stage.WAITING:
            await self._wait(entry, deadline, loop)
        return Pass(self, entry)

    async def _wait(self, entry: Entry, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        waiter = entry.waiter = loop.create_future()
        timer = loop.call_at(deadline, self._too_late, entry)
        self._pump()
        try:
            await waiter
        except asyncio.CancelledError:
            # the client has left: its place in the queue goes, or the place in the engine that it has just been given
            if entry.stage is Stage.IN:
                self.leave(entry, None)
            else:
                self.scheduler.withdraw(entry, loop.time())
                self._pump()
            raise
        finally:
            timer.cancel()

    def first_token(self, entry: Entry) -> None:
        """See `Pass.first_token`."""
        now = asyncio.get_running_loop().time()
        if entry.stage is Stage.IN:
            self._tell_residency(entry, now)
            self.scheduler.first_token(entry, now)
            self._pump()

    def leave(self, entry: Entry, tokens: int | None, *, answered: bool = True) -> None:
        """See `Pass.leave`."""
        now = asyncio.get_running_loop().time()
        if entry.stage is Stage.IN:
            if answered and tokens is not None:
                self._tell_residency(entry, now)
            self.scheduler.leave(entry, tokens, now)
            self._pump()

    def flush(self, error: Callable[[], HatrackError]) -> None:
        """Refuse everyone who waits with an error of their own."""
        for entry in self.scheduler.drain(asyncio.get_running_loop().time()):
            if entry.waiter is not None and not entry.waiter.done():
                entry.waiter.set_exception(error())

    def close(self, reason: str) -> None:
        """There is no engine: refuse everyone who waits, and everyone who comes until `open`."""

        def error() -> HatrackError:
            return EngineUnavailable(f"the engine is not ready: {reason}")

        self._closed = error
        self.flush(error)

    def open(self) -> None:
        """There is an engine (again)."""
        self._closed = None

    def engine_changed(self, state: EngineState) -> None:
        """Open or close with the engine: a listener for its supervisor."""
        if state.name == "ready":
            self.open()
        else:
            self.close(state.reason)

    def snapshot(self) -> Snapshot:
        """What is waiting, what is in the engine, and what has happened so far."""
        return take(self.scheduler)

    def _tell_residency(self, entry: Entry, now: float) -> None:
        if entry.cold and self._residency is not None and entry.ticket.adapter is not None:
            self._residency.loaded(entry.ticket.adapter, now - entry.entered)

    def _too_late(self, entry: Entry) -> None:
        if entry.stage is not Stage.WAITING or entry.waiter is None or entry.waiter.done():
            return
        scheduler, now = self.scheduler, asyncio.get_running_loop().time()
        ahead = scheduler.queued
        scheduler.withdraw(entry, now)
        scheduler.counts.timeouts += 1
        entry.waiter.set_exception(
            Unavailable(
                f"no place in the engine came free within {now - entry.came:.0f} s (HATRACK_QUEUE_TIMEOUT_S)",
                retry_after=scheduler.retry_after(ahead),
                code="queue_timeout",
            )
        )
        self._pump()

    def _pump(self) -> None:
        """Let in whoever may go in now."""
        scheduler = self.scheduler
        if not scheduler.queued:
            return
        loop = asyncio.get_running_loop()
        for entry in scheduler.admit(loop.time()):
            if entry.waiter is not None and not entry.waiter.done():
                entry.waiter.set_result(None)
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        wake = scheduler.wake_at()
        if wake is not None:
            self._wake = loop.call_at(wake, self._pump)
