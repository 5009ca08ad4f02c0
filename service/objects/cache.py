"""The local folders as a cache of the object store: bounded, least recently used out, each object fetched once.

A copy that somebody holds stays, and so does what the engine has in its memory: it may read those files again. What is
held or loaded may exceed the bound, which is then kept as soon as it is let go. Everything but a copy's own bytes is
decided in the event loop; a copy that is here costs its request two dictionary look-ups.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, ParamSpec, TypeVar

from adapters.errors import AdapterError
from service.concurrency import repeat
from service.errors import HatrackError, StoreUnavailable
from service.histogram import Histogram

P = ParamSpec("P")
T = TypeVar("T")
THREADS: Final = 8
"""Transfers at once. They have threads of their own: those that wait for a store that is away hold up nothing else."""
AWAY_S: Final = 2.0
"""For how long nobody asks a store again that did not answer."""
FAILED_S: Final = 30.0
"""For how long an object that was missing or damaged is not fetched again."""
LEND_S: Final = 60.0
"""How long a path that was given away stays valid; whoever has opened the file by then may read on."""
TRIM_S: Final = 30.0
MAX_FAILED: Final = 10_000
FETCH_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bucket bounds of the histogram of fetches' durations, s."""
_LOG: Final = logging.getLogger("hatrack.objects")


Outcome = Literal["fetched", "failed", "away"]
"""here now · the object is missing, damaged or refused · the store did not answer"""


class FetchCounts:
    """Fetches of one kind of object since the gateway's start; used on the event loop only."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.bytes = 0
        """Of what was fetched."""
        self.seconds = Histogram(FETCH_S)
        """Of what was fetched."""
        self.evicted = 0
        """Copies that were removed to keep the bound."""

    def record(self, outcome: Outcome, seconds: float = 0.0, size: int = 0) -> None:
        """Count one fetch; duration and bytes are those of one that brought the object."""
        self.outcomes[outcome] += 1
        if outcome == "fetched":
            self.bytes += size
            self.seconds.observe(seconds)


@dataclass(slots=True)
class _Entry:
    """A copy, or what is left of it for those who hold one that was removed or found to be damaged."""

    bytes: int
    holds: int = 0
    is_here: bool = True


class LocalCache:
    """Bounds all local copies together.

    Args:
        max_bytes: How much of the disk they may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.kinds: list[Copies] = []
        self._order: OrderedDict[tuple[Copies, str], None] = OrderedDict()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objects")
        self._away_until = 0.0
        self._overfull = asyncio.Event()

    @property
    def bytes(self) -> int:
        """What all copies take."""
        return sum(kind.bytes for kind in self.kinds)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the bound while it is open."""
        trimming = asyncio.create_task(repeat(self.trim, TRIM_S, self._overfull), name="objects-trim")
        try:
            yield
        finally:
            trimming.cancel()
            await asyncio.gather(trimming, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a transfer in a thread. A caller that is cancelled still waits until it is done (``in_thread``)."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()
            raise

    def used(self, kind: Copies, name: str) -> None:
        """The copy was used now."""
        self._order[kind, name] = None
        self._order.move_to_end((kind, name))

    def gone(self, kind: Copies, name: str) -> None:
        """The copy is no longer here."""
        self._order.pop((kind, name), None)

    def require_answer(self) -> None:
        """Raise StoreUnavailable if the store has just not answered."""
        remaining = self._away_until - asyncio.get_running_loop().time()
        if remaining > 0:
            raise StoreUnavailable("the object store (HATRACK_STORE_URL) does not answer; try again", reason="away")

    def away(self) -> None:
        """The store did not answer."""
        self._away_until = asyncio.get_running_loop().time() + AWAY_S

    def trim_soon(self) -> None:
        """Have the bound kept in the background, if it is exceeded."""
        if self.bytes > self.max_bytes:
            self._overfull.set()

    async def trim(self) -> None:
        """Remove the least recently used copies that nobody needs, until the bound is kept."""
        excess = self.bytes - self.max_bytes
        if excess <= 0:
            return
        kept = {kind: kind.kept() for kind in self.kinds}
        removals = []
        for kind, name in list(self._order):
            if excess <= 0:
                break
            protected = kept[kind]
            if protected is None or name in protected or kind.is_held(name):
                continue
            excess -= kind.size(name)
            removals.append(kind.evict(name))
        await asyncio.gather(*removals)


class Copies:
    """The local copies of one kind of object.

    Args:
        cache: What bounds them.
        kind: What they are copies of, for metrics.
        fetch: Makes the copy of an object and returns its bytes; raises HatrackError or AdapterError.
        remove: Removes a copy; blocks.
        kept: Names of copies that must stay now; None: that cannot be told, so all stay.
    """

    def __init__(
        self,
        cache: LocalCache,
        kind: str,
        fetch: Callable[[str], Awaitable[int]],
        remove: Callable[[str], None],
        kept: Callable[[], Collection[str] | None] = frozenset,
    ) -> None:
        self.cache = cache
        self.kind = kind
        self.kept = kept
        self.counts = FetchCounts()
        self.bytes = 0
        self._fetch_copy = fetch
        self._remove_copy = remove
        self._entries: dict[str, _Entry] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, int] = {}
        self._failed: dict[str, tuple[float, HatrackError | AdapterError]] = {}
        cache.kinds.append(self)

    # of what is here

    def found(self, sizes: Mapping[str, int]) -> None:
        """Take over copies that a former process has left, the least recently used first."""
        for name, size in sizes.items():
            self.added(name, size)

    def added(self, name: str, size: int) -> None:
        """There is a copy now, which is what the object store has."""
        self._failed.pop(name, None)
        entry = self._entries.get(name)
        if entry is None:
            self._entries[name] = _Entry(size)
            self.bytes += size
        else:
            self.bytes += size - entry.bytes
            entry.bytes, entry.is_here = size, True
        self.cache.used(self, name)

    def dropped(self, name: str) -> None:
        """The copy was removed, or is not to be used any more."""
        entry = self._entries.get(name)
        if entry is None:
            return
        self.bytes -= entry.bytes
        entry.bytes, entry.is_here = 0, False
        self.cache.gone(self, name)
        self._forget_unheld(name, entry)

    def _forget_unheld(self, name: str, entry: _Entry) -> None:
        if not entry.is_here and not entry.holds:
            del self._entries[name]

    def size(self, name: str) -> int:
        """Bytes of a copy that is here."""
        return self._entries[name].bytes

    def is_held(self, name: str) -> bool:
        """Whether somebody has the copy in use, or waits for it."""
        entry = self._entries.get(name)
        return name in self._wanted or (entry is not None and entry.holds > 0)

    def is_failed(self, name: str) -> bool:
        """Whether the object was found missing or damaged a moment ago."""
        return name in self._failed

    def retry(self, name: str) -> None:
        """Fetch the object again when it is next needed, also if it has just failed."""
        self._failed.pop(name, None)

    # holding

    def try_hold(self, name: str) -> bool:
        """Hold the copy, if it is here: it stays until ``release``."""
        entry = self._entries.get(name)
        if entry is None or not entry.is_here:
            return False
        entry.holds += 1
        self.cache.used(self, name)
        return True

    def release(self, name: str) -> None:
        """End one hold."""
        entry = self._entries[name]
        entry.holds -= 1
        self._forget_unheld(name, entry)

    def is_here(self, name: str) -> bool:
        """Whether there is a copy."""
        entry = self._entries.get(name)
        return entry is not None and entry.is_here

    async def hold(self, name: str) -> None:
        """Make sure that the copy is here, and hold it. Whoever else needs it waits for the same fetch.

        Raises:
            StoreUnavailable: The object store does not answer.
            HatrackError, AdapterError: As ``fetch``.
        """
        if self.try_hold(name):
            return
        self._want(name, 1)
        try:
            while not self.try_hold(name):
                await asyncio.shield(self._busy.get(name) or self._start(name, self._fetch(name)))
        finally:
            self._want(name, -1)

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[None]:
        """Keep the copy from being removed while it is written by somebody else than ``fetch``."""
        while (busy := self._busy.get(name)) is not None:
            await asyncio.wait({busy})
        self._want(name, 1)
        try:
            yield
        finally:
            self._want(name, -1)

    @asynccontextmanager
    async def holding(self, name: str) -> AsyncIterator[None]:
        """Hold the copy for the context. Raises as ``hold``."""
        await self.hold(name)
        try:
            yield
        finally:
            self.release(name)

    async def lend(self, name: str) -> None:
        """Hold the copy for a minute, for somebody who only opens it. Raises as ``hold``."""
        await self.hold(name)
        asyncio.get_running_loop().call_later(LEND_S, self.release, name)

    async def evict(self, name: str) -> None:
        """Remove a copy that nobody holds; the object stays."""
        if self.is_held(name) or name in self._busy or not self.is_here(name):
            return
        self.dropped(name)
        self.counts.evicted += 1
        await self._start(name, self._evict(name))

    def _want(self, name: str, change: int) -> None:
        count = self._wanted.get(name, 0) + change
        if count:
            self._wanted[name] = count
        else:
            del self._wanted[name]

    def _start(self, name: str, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._busy[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))
        return task

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._busy.get(name) is task:
            del self._busy[name]
        if not task.cancelled():
            task.exception()  # seen, also where all who waited have left

    async def _evict(self, name: str) -> None:
        await self.cache.run(self._remove_copy, name)

    async def _fetch(self, name: str) -> None:
        now = asyncio.get_running_loop().time()
        until, failure = self._failed.get(name, (0.0, None))
        if failure is not None and until > now:
            raise failure.with_traceback(None)  # or each would carry the frames of all before
        self.cache.require_answer()
        began = time.perf_counter()
        try:
            size = await self._fetch_copy(name)
        except StoreUnavailable:
            self.cache.away()
            self.counts.record("away")
            raise
        except (HatrackError, AdapterError) as error:
            self.counts.record("failed")
            if len(self._failed) >= MAX_FAILED:
                self._failed.clear()
            self._failed[name] = now + FAILED_S, error
            raise
        self.counts.record("fetched", time.perf_counter() - began, size)
        self.added(name, size)
        self.cache.trim_soon()
