"""Indexing: one file after the other, in the background, fair between projects, and again where a crash cut it off.

A file's passages are written as a document that nothing refers to; one transaction of the metadata database then makes
it the one that is found. Whatever is killed and when, a search sees all of a file or what was there before.

Trouble that passes (an endpoint that is busy, an embedder that is not ready, a full disk) fails no file: it waits its
turn, and the pauses between two tries grow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from service.concurrency import Locks, in_thread
from service.database import Database
from service.errors import DiskFull, HatrackError, Unavailable
from service.knowledge.embeddings import Batch, DocumentRefused, Embedder, EmbedderGone
from service.knowledge.index import work_records
from service.knowledge.index.cache import IndexCache, Open
from service.knowledge.index.memory import Document, Index
from service.knowledge.index.passage_records import PassageFile
from service.knowledge.index.work_records import Finished, Searchable, Work

ATTEMPTS: Final = 3
"""How often a file is tried whose indexing ended the embedder."""
RETRY_S: Final = 2.0
"""The first pause after trouble that passes; each further one is twice as long."""
MAX_PAUSE_S: Final = 60.0
MAX_LATER: Final = 200
"""Files that are remembered to have met such trouble: the others go before them."""
IDLE_S: Final = 30.0
"""Seconds between two looks for work where nobody tells of any."""
_LOG: Final = logging.getLogger("hatrack.grounding")


@dataclass(slots=True)
class Progress:
    """Of the file that is being indexed: ``done`` of ``total`` passages; ``dropped`` when nobody wants it any more."""

    work: Work
    done: int = 0
    total: int = 0
    dropped: bool = False


class Dropped(Exception):
    """Nobody wants the file any more."""


class Indexing:
    """The task that indexes.

    Args:
        path_of: Where the bytes of a file id are.
        locks: Held by store id while what is found in it changes.
        memory_bytes: Most that the index of one store may take.
        changed: Called when a file is done, or waits.
    """

    def __init__(
        self,
        database: Database,
        cache: IndexCache,
        embedder: Embedder,
        path_of: Callable[[str], Path],
        locks: Locks,
        *,
        memory_bytes: int,
        changed: Callable[[], None],
    ) -> None:
        self._database = database
        self._cache = cache
        self._embedder = embedder
        self._path_of = path_of
        self._locks = locks
        self._memory_bytes = memory_bytes
        self._changed = changed
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_project: str | None = None
        self._later: dict[str, int] = {}  # by generation, the longest untried first: how often the embedder went away
        self._troubles = 0  # since a file was done
        self.current: Progress | None = None
        self.idle: Callable[[], Awaitable[None]] | None = None
        """Called between two files, and when there is nothing to do."""

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="grounding-indexing")

    async def close(self) -> None:
        """Stop; what is half indexed is begun anew by the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def wake(self) -> None:
        """There is work."""
        self._wake.set()

    def drop(self, generations: set[str]) -> None:
        """Nobody wants these any more."""
        if self.current is not None and self.current.work.wanted in generations:
            self.current.dropped = True

    def drop_store(self, store_id: str) -> None:
        """Nobody wants anything of this store any more."""
        if self.current is not None and self.current.work.store_id == store_id:
            self.current.dropped = True

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                if self.idle is not None:
                    await self.idle()
                last, later = self._last_project, tuple(self._later)
                work = await self._database.run(partial(work_records.next_work, last_project=last, later=later))
                if work is not None:
                    self._last_project = work.project
                    if not await self._do(work):
                        # nothing is held meanwhile: files that wait may be removed, and their stores too
                        await asyncio.sleep(min(RETRY_S * 2 ** min(self._troubles - 1, 30), MAX_PAUSE_S))
                    continue
            except Exception:  # a full disk passes; the next look may be luckier
                _LOG.exception("indexing failed")
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _do(self, work: Work) -> bool:
        """Whether something came of it; else it is to be tried again later."""
        self.current = Progress(work)
        try:
            async with self._cache.use(work.store_id) as store:
                result = await self._try(work, store)
                if result is not None:
                    await self._settle(result, store)
        except (Unavailable, DiskFull) as error:
            await self._postpone(work, error)
            return False
        except HatrackError as error:
            # a store whose passages cannot be used must not hold up the others
            _LOG.exception("a vector store cannot be used", extra={"store": work.store_id})
            failed = Finished(work, 0, 0, self._embedder.identity, ("server_error", error.message))
            async with self._locks.hold(work.store_id):
                await self._database.run(lambda db: work_records.finish(db, failed))
                self._changed()
        finally:
            self.current = None
        self._later.pop(work.wanted, None)
        self._troubles = 0
        return True

    async def _postpone(self, work: Work, error: HatrackError) -> None:
        _LOG.warning("a file waits to be indexed", extra={"file": work.file_id, "reason": error.message})
        self._later[work.wanted] = self._later.pop(work.wanted, 0) + isinstance(error, EmbedderGone)
        while len(self._later) > MAX_LATER:
            del self._later[next(iter(self._later))]
        self._troubles += 1
        with suppress(HatrackError):  # on a full disk it can only be logged
            await self._database.run(lambda db: work_records.wait(db, work, error.message))
            self._changed()

    async def _try(self, work: Work, store: Open) -> Finished | None:
        """What came of it; None where nobody wants it any more. Raises Unavailable, DiskFull: not now."""
        try:
            passages, usage = await self._write(work, store.file)
            return Finished(work, passages, usage, self._embedder.identity)
        except Dropped:
            await in_thread(store.file.delete, [work.wanted])
            return None
        except DocumentRefused as error:
            failure = (error.code, error.message)
        except (Unavailable, DiskFull) as error:
            if not isinstance(error, EmbedderGone) or self._later.get(work.wanted, 0) + 1 < ATTEMPTS:
                with suppress(HatrackError):  # else the next try does it
                    await in_thread(store.file.delete, [work.wanted])
                raise
            failure = ("server_error", error.message)
        except HatrackError as error:
            failure = ("server_error", error.message)
        _LOG.warning("a file could not be indexed", extra={"file": work.file_id, "reason": failure[1]})
        await in_thread(store.file.delete, [work.wanted])
        return Finished(work, 0, 0, self._embedder.identity, failure)

    async def _write(self, work: Work, file: PassageFile) -> tuple[int, int]:
        """Write a file's passages: how many, and the bytes that they take. Raises Dropped, DocumentRefused."""
        others = await self._database.run(lambda db: work_records.usage_bytes(db, work.store_id, work.file_id))
        document = await in_thread(file.begin, work.wanted)
        usage = 0
        async for batch in self._embedder.passages(self._path_of(work.file_id), work.filename, work.chunking):
            self._demand_wanted()
            usage += _bytes(batch)
            if others + usage > self._memory_bytes:
                raise DocumentRefused(
                    "server_error",
                    f"the vector store would take more than {self._memory_bytes >> 20} MiB of memory "
                    "(HATRACK_GROUNDING_MEMORY_MIB)",
                )
            await in_thread(file.add, document, batch.segment, batch.passages)
            if self.current is not None:
                self.current.done += len(batch.passages)
                self.current.total = batch.total
        self._demand_wanted()
        return (self.current.done if self.current is not None else 0), usage

    def _demand_wanted(self) -> None:
        if self.current is not None and self.current.dropped:
            raise Dropped

    async def _settle(self, result: Finished, store: Open) -> None:
        """Make what came of it known. A search finds the file before anybody hears that it is completed."""
        work = result.work
        async with self._locks.hold(work.store_id):
            stands = await self._database.run(lambda db: work_records.standing(db, work))
            garbage = [work.wanted]
            if stands is not None and result.keeps_former:
                await self._database.run(lambda db: work_records.finish(db, result))
                self._changed()
            elif stands is not None:
                found, former = stands
                garbage = [] if former is None else [former]
                before = store.index
                if before is not None:
                    found_now = found if result.error is None else None
                    store.index = await in_thread(_replaced, store.file, before, former, found_now)
                try:
                    await self._database.run(lambda db: work_records.finish(db, result))
                except BaseException:
                    store.index = before
                    raise
                self._changed()
        await in_thread(store.file.delete, garbage)


def _replaced(file: PassageFile, index: Index, former: str | None, found: Searchable | None) -> Index:
    """The index with the document that is found now, and without the former one. Blocks."""
    old = None if former is None else index.number_of(former)
    if found is None:
        return index if old is None else index.without(old)
    loaded = file.load_one(found.generation)
    number = loaded.numbers[found.generation]
    document = Document(found.file_id, found.filename, found.generation, found.attributes, loaded.own.get(number, {}))
    return index.with_document(number, document, loaded.segments, old)


def _bytes(batch: Batch) -> int:
    return batch.segment.size + sum(len(one.text.encode()) + len(one.heading.encode()) for one in batch.passages)
