"""One lock a key, work in a thread that is never left behind, and work that is done again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_LOG: Final = logging.getLogger("hatrack.background")


class Locks:
    """Mutual exclusion by key. The map holds no more keys than there are tasks inside or in line."""

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for the key's lock, in order of arrival, and hold it."""
        lock, users = self._held.get(key, (asyncio.Lock(), 0))
        self._held[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._held[key]
            if users == 1:
                del self._held[key]
            else:
                self._held[key] = (lock, users - 1)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that blocks in a thread. A caller that is cancelled still waits until the thread is done, so that
    what the thread works on (a file, a directory) is not taken from under it."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # seen: the cancellation is what the caller hears of
        raise


async def repeat(step: Callable[[], Awaitable[object]], every_s: float, wake: asyncio.Event | None = None) -> None:
    """Run ``step`` again and again until cancelled: every ``every_s`` seconds, and at once when ``wake`` is set.

    Whatever it raises is logged: a full disk, a locked database or an absent engine passes, and the next step may work.
    """
    wake = wake or asyncio.Event()
    while True:
        wake.clear()
        try:
            await step()
        except Exception:
            _LOG.exception("a background task failed", extra={"task": getattr(step, "__qualname__", repr(step))})
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await wake.wait()
