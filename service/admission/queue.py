"""The admission queue on the event loop: waiting, deadlines, and clients that disconnect while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.admission.policy import Policy
from service.admission.queued import QueuedRequest, Stage
from service.admission.request import AdmissionRequest
from service.admission.scheduler import Scheduler
from service.admission.snapshot import QueueSnapshot, take_snapshot
from service.engine.prefetch import Prefetcher
from service.engine.residency import Residency
from service.engine.watched import EngineState
from service.errors import EngineUnavailable, HatrackError, Unavailable


class QueuePermit:
    """A place in the engine. Call `leave` when the request has finished; further calls do nothing."""

    __slots__ = ("_entry", "_queue")

    def __init__(self, queue: AdmissionQueue, entry: QueuedRequest) -> None:
        self._queue = queue
        self._entry = entry

    def first_token(self) -> None:
        """The engine has returned the first token, so the prompt has been prefilled."""
        self._queue.first_token(self._entry)

    def leave(self, tokens: int | None, *, answered: bool = True) -> None:
        """The request has left the engine.

        Args:
            tokens: Tokens that it used or is charged for; None if nothing was sent to the engine.
            answered: The engine has answered, so the adapter is loaded.
        """
        self._queue.leave(self._entry, tokens, answered=answered)


class AdmissionQueue:
    """Admits requests to the engine.

    Args:
        policy: Its limits.
        residency: Which adapters the engine has loaded; None: unknown.
        prefetcher: Told which adapters wait that the engine has to load; None: nobody is.
    """

    def __init__(
        self, policy: Policy, residency: Residency | None = None, prefetcher: Prefetcher | None = None
    ) -> None:
        self.scheduler = Scheduler(policy, residency.is_cold if residency is not None else None)
        self._residency = residency
        self._prefetcher = prefetcher
        self._closed: Callable[[], HatrackError] | None = None
        self._wake: asyncio.TimerHandle | None = None

    def try_enter(self, request: AdmissionRequest) -> QueuePermit | None:
        """A place in the engine for a request that finds no queue; None: ask `enter`, which may have one at once."""
        if self._closed is not None:
            return None
        entry = self.scheduler.try_enter(request, asyncio.get_running_loop().time())
        return None if entry is None else QueuePermit(self, entry)

    async def enter(self, request: AdmissionRequest, deadline: float) -> QueuePermit:
        """Wait for a place in the engine.

        Args:
            deadline: On the event loop's clock, s.

        Raises:
            RateLimited: The caller's share of the queue is full.
            Unavailable: The queue is full, or the deadline passed, or its turn would come after that.
            EngineUnavailable: The engine is not running, or stopped while the request waited.
        """
        self.require_open()
        loop = asyncio.get_running_loop()
        now = loop.time()
        entry = self.scheduler.offer(request, now, deadline - now)
        self._tell_displaced()
        if entry.stage is Stage.WAITING:
            adapter = request.adapter
            if self._prefetcher is None or adapter is None or not self._is_cold(adapter):
                await self._wait(entry, deadline, loop)
            else:
                self._prefetcher.want(adapter)
                try:
                    await self._wait(entry, deadline, loop)
                finally:
                    self._prefetcher.drop(adapter)
        return QueuePermit(self, entry)

    async def _wait(self, entry: QueuedRequest, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        waiter = entry.waiter = loop.create_future()
        timer = loop.call_at(deadline, self._time_out, entry)
        self._admit_waiting()
        try:
            await waiter
        except asyncio.CancelledError:
            # the client disconnected: give back its place in the queue, or in the engine if it was just admitted
            if entry.stage is Stage.ADMITTED:
                self.leave(entry, None)
            else:
                self.scheduler.withdraw(entry, loop.time())
                self._admit_waiting()
            raise
        finally:
            timer.cancel()

    def _tell_displaced(self) -> None:
        displaced = self.scheduler.displaced
        while displaced:
            waiter = displaced.pop().waiter
            if waiter is not None and not waiter.done():
                waiter.set_exception(self.scheduler.full())

    def first_token(self, entry: QueuedRequest) -> None:
        """See `QueuePermit.first_token`."""
        now = asyncio.get_running_loop().time()
        if entry.stage is Stage.ADMITTED:
            self._report_loaded(entry, now)
            self.scheduler.first_token(entry, now)
            self._admit_waiting()

    def leave(self, entry: QueuedRequest, tokens: int | None, *, answered: bool = True) -> None:
        """See `QueuePermit.leave`."""
        scheduler = self.scheduler
        if entry.stage is Stage.ADMITTED:
            now = asyncio.get_running_loop().time()
            if entry.cold and answered and tokens is not None:
                self._report_loaded(entry, now)
            scheduler.leave(entry, tokens, now)
            if scheduler.queued:
                self._admit_waiting()

    def flush(self, error: Callable[[], HatrackError]) -> None:
        """Fail every waiting request with a new ``error()``."""
        for entry in self.scheduler.drain(asyncio.get_running_loop().time()):
            if entry.waiter is not None and not entry.waiter.done():
                entry.waiter.set_exception(error())

    def close(self, reason: str) -> None:
        """Reject all waiting requests, and new ones until `open`, because the engine is not running."""

        def error() -> HatrackError:
            return EngineUnavailable(f"the engine is not ready: {reason}")

        self._closed = error
        self.flush(error)

    def require_open(self) -> None:
        """Raise EngineUnavailable if the engine is not running."""
        if self._closed is not None:
            raise self._closed()

    def open(self) -> None:
        """Accept requests again: the engine is running."""
        self._closed = None

    def engine_changed(self, state: EngineState) -> None:
        """Open or close with the engine's state; a listener for its supervisor."""
        if state.name == "ready":
            self.open()
        else:
            self.close(state.reason)

    @property
    def load(self) -> int:
        """Requests that are in the engine or queued for it."""
        return self.scheduler.queued + self.scheduler.in_flight

    @property
    def callers_load(self) -> tuple[int, int]:
        """Callers' requests that are queued, and that are in the engine."""
        return self.scheduler.callers.queued, self.scheduler.callers.in_flight

    def snapshot(self) -> QueueSnapshot:
        """Point-in-time statistics of the queue."""
        return take_snapshot(self.scheduler)

    def _is_cold(self, adapter: str) -> bool:
        return self._residency is not None and self._residency.is_cold(adapter)

    def _report_loaded(self, entry: QueuedRequest, now: float) -> None:
        if entry.cold and self._residency is not None and entry.request.adapter is not None:
            self._residency.loaded(entry.request.adapter, now - entry.admitted_at)

    def _time_out(self, entry: QueuedRequest) -> None:
        if entry.stage is not Stage.WAITING or entry.waiter is None or entry.waiter.done():
            return
        scheduler, now = self.scheduler, asyncio.get_running_loop().time()
        ahead = scheduler.queued
        scheduler.withdraw(entry, now)
        scheduler.counts.timeouts += 1
        entry.waiter.set_exception(
            Unavailable(
                f"the request waited {now - entry.arrived_at:.0f} s in the queue without being admitted "
                "(HATRACK_QUEUE_TIMEOUT_S)",
                retry_after=scheduler.retry_after(ahead),
                code="queue_timeout",
            )
        )
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        """Admit every request that may enter now."""
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
            self._wake = loop.call_at(wake, self._admit_waiting)
