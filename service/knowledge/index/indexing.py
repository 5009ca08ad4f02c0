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
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from service.concurrency import Locks, in_thread
from service.database import Database
from service.errors import DiskFull, HatrackError, Unavailable
from service.knowledge.embeddings import Batch, DocumentRefused, Embedder, EmbedderGone
from service.knowledge.index import indexing_records
from service.knowledge.index.cache import CachedStore, IndexCache
from service.knowledge.index.indexing_records import IndexingResult, IndexingTask, SearchableFile
from service.knowledge.index.memory import Document, Index, other_dimensions
from service.knowledge.index.passage_records import PassageFile
from service.knowledge.types import FileInfo

ATTEMPTS: Final = 5
"""How often a file is tried over which the embedder, or its reader of documents, ended: half a minute of pauses."""
RETRY_S: Final = 2.0
"""The first pause after trouble that passes; each further one is twice as long."""
MAX_PAUSE_S: Final = 60.0
MAX_POSTPONED: Final = 200
"""Files that are remembered to have met such trouble: the others go before them."""
IDLE_S: Final = 30.0
"""Seconds between two looks for work where nobody tells of any."""
LocalFile = Callable[[str], AbstractAsyncContextManager[Path]]
"""Has the bytes of a file on the disk for as long as the context, and says where; raises HatrackError."""
_LOG: Final = logging.getLogger("hatrack.grounding")


@dataclass(slots=True)
class Progress:
    """Progress of the current task: ``done`` of ``total`` passages; ``dropped`` if the file was removed meanwhile."""

    task: IndexingTask
    done: int = 0
    total: int = 0
    dropped: bool = False


class Dropped(Exception):
    """The file that is being indexed was removed, or its batch was cancelled."""


class Indexing:
    """The background task that indexes files, one at a time.

    Args:
        local_file: Has the bytes of a file id on the disk, and says where.
        locks: Held by store id while what is found in it changes.
        memory_bytes: Most that the index of one store may take.
        max_project_bytes: Most that all stores of one project may take on the disk; None: no limit.
        changed: Called when a file is done, or waits.
    """

    def __init__(
        self,
        database: Database,
        cache: IndexCache,
        embedder: Embedder,
        local_file: LocalFile,
        locks: Locks,
        memory_bytes: int,
        max_project_bytes: int | None,
        changed: Callable[[], None],
    ) -> None:
        self._database = database
        self._cache = cache
        self._embedder = embedder
        self._local_file = local_file
        self._locks = locks
        self._memory_bytes = memory_bytes
        self._max_project_bytes = max_project_bytes
        self._changed = changed
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_project: str | None = None
        self._postponed: dict[
            str, int
        ] = {}  # by generation, the longest untried first: how often the embedder went away
        self._consecutive_failures = 0  # since a file was done
        self.current: Progress | None = None
        self.idle: Callable[[], Awaitable[None]] | None = None
        """Called between two files, and when there is nothing to do."""

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name="grounding-indexing")

    async def close(self) -> None:
        """Stop the task; a file that is half indexed is indexed anew after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def wake(self) -> None:
        """Look for work now: files were added."""
        self._wake.set()

    def with_progress(self, file: FileInfo) -> FileInfo:
        """The file with how far its indexing has come, if it is the current one."""
        current = self.current
        if current is None or (current.task.store_id, current.task.file_id) != (file.store_id, file.file_id):
            return file
        return replace(file, passages=current.total, done=current.done) if file.status == "in_progress" else file

    def drop(self, generations: set[str]) -> None:
        """Stop indexing the current file if it is one of these generations."""
        if self.current is not None and self.current.task.generation in generations:
            self.current.dropped = True

    def drop_store(self, store_id: str) -> None:
        """Stop indexing the current file if it belongs to this store."""
        if self.current is not None and self.current.task.store_id == store_id:
            self.current.dropped = True

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                if self.idle is not None:
                    await self.idle()
                last, later = self._last_project, tuple(self._postponed)
                task = await self._database.run(partial(indexing_records.next_task, last_project=last, later=later))
                if task is not None:
                    self._last_project = task.project
                    if not await self._process(task):
                        # nothing is held meanwhile: files that wait may be removed, and their stores too
                        await asyncio.sleep(min(RETRY_S * 2 ** min(self._consecutive_failures - 1, 30), MAX_PAUSE_S))
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

    async def _process(self, task: IndexingTask) -> bool:
        """Whether something came of it; else it is to be tried again later."""
        self.current = Progress(task)
        try:
            async with self._cache.use(task.store_id) as store:
                result = await self._attempt(task, store)
                if result is not None:
                    await self._commit(result, store)
        except (Unavailable, DiskFull) as error:
            await self._postpone(task, error)
            return False
        except Exception as error:
            # a store whose passages cannot be used must not hold up the others
            _LOG.exception("a vector store cannot be used", extra={"store": task.store_id})
            reason = error.message if isinstance(error, HatrackError) else f"internal error ({type(error).__name__})"
            failed = IndexingResult(task, 0, 0, self._embedder.identity, ("server_error", reason))
            async with self._locks.hold(task.store_id):
                await self._database.run(lambda db: indexing_records.record_result(db, failed))
                self._changed()
        finally:
            self.current = None
        self._postponed.pop(task.generation, None)
        self._consecutive_failures = 0
        return True

    async def _postpone(self, task: IndexingTask, error: HatrackError) -> None:
        _LOG.warning("indexing of a file is postponed", extra={"file": task.file_id, "reason": error.message})
        self._postponed[task.generation] = self._postponed.pop(task.generation, 0) + isinstance(error, EmbedderGone)
        while len(self._postponed) > MAX_POSTPONED:
            del self._postponed[next(iter(self._postponed))]
        self._consecutive_failures += 1
        with suppress(HatrackError):  # on a full disk it can only be logged
            await self._database.run(lambda db: indexing_records.record_delay(db, task, error.message))
            self._changed()

    async def _attempt(self, task: IndexingTask, store: CachedStore) -> IndexingResult | None:
        """What came of it; None where nobody wants it any more. Raises Unavailable, DiskFull: not now."""
        try:
            async with self._local_file(task.file_id) as path:
                passages, usage = await self._write(task, store.file, path)
            return IndexingResult(task, passages, usage, self._embedder.identity)
        except Dropped:
            await in_thread(store.file.delete, [task.generation])
            return None
        except DocumentRefused as error:
            failure = (error.code, error.message)
        except (Unavailable, DiskFull) as error:
            if not isinstance(error, EmbedderGone) or self._postponed.get(task.generation, 0) + 1 < ATTEMPTS:
                with suppress(HatrackError):  # else the next try does it
                    await in_thread(store.file.delete, [task.generation])
                raise
            failure = (error.final_code, f"{error.message}; tried {ATTEMPTS} times")
        except HatrackError as error:
            failure = ("server_error", error.message)
        _LOG.warning("a file could not be indexed", extra={"file": task.file_id, "reason": failure[1]})
        await in_thread(store.file.delete, [task.generation])
        return IndexingResult(task, 0, 0, self._embedder.identity, failure)

    async def _write(self, task: IndexingTask, file: PassageFile, path: Path) -> tuple[int, int]:
        """Write the passages of the file at ``path``: how many, and the bytes that they take.

        Raises Dropped, DocumentRefused.
        """
        others = await self._database.run(lambda db: indexing_records.usage_bytes(db, task.store_id, task.file_id))
        stored = 0
        if self._max_project_bytes is not None:
            own = partial(indexing_records.project_usage_bytes, project=task.project, but=task.generation)
            stored = await self._database.run(own)
        dimensions = await self._dimensions(task, file)
        document = await in_thread(file.begin, task.generation)
        usage = 0
        async for batch in self._embedder.passages(path, task.filename, task.chunking):
            self._raise_if_dropped()
            dimensions = dimensions or batch.segment.dimensions
            if batch.segment.dimensions != dimensions:
                raise DocumentRefused("server_error", other_dimensions(batch.segment.dimensions, dimensions))
            usage += _bytes(batch)
            if others + usage > self._memory_bytes:
                raise DocumentRefused(
                    "server_error",
                    f"the vector store would need more than {self._memory_bytes >> 20} MiB of memory "
                    "(HATRACK_GROUNDING_MEMORY_MIB)",
                )
            if self._max_project_bytes is not None and stored + usage > self._max_project_bytes:
                raise DocumentRefused("server_error", stores_full(stored, self._max_project_bytes))
            await in_thread(file.add, document, batch.segment, batch.passages)
            if self.current is not None:
                self.current.done += len(batch.passages)
                self.current.total = batch.total
        self._raise_if_dropped()
        return (self.current.done if self.current is not None else 0), usage

    async def _dimensions(self, task: IndexingTask, file: PassageFile) -> int | None:
        """How many dimensions the vectors of the store's other files have; None: there are none."""
        other = await self._database.run(lambda db: indexing_records.other_document(db, task, self._embedder.identity))
        return None if other is None else await in_thread(file.dimensions, other)

    def _raise_if_dropped(self) -> None:
        if self.current is not None and self.current.dropped:
            raise Dropped

    async def _commit(self, result: IndexingResult, store: CachedStore) -> None:
        """Make what came of it known. A search finds the file before anybody hears that it is completed."""
        task = result.task
        async with self._locks.hold(task.store_id):
            stands = await self._database.run(lambda db: indexing_records.pending_file(db, task))
            garbage = [task.generation]
            if stands is not None and result.keeps_previous:
                await self._database.run(lambda db: indexing_records.record_result(db, result))
                self._changed()
            elif stands is not None:
                current, former = stands
                garbage = [] if former is None else [former]
                before = store.index
                if before is not None:
                    searchable_now = current if result.error is None else None
                    store.index = await in_thread(_replace_document, store.file, before, former, searchable_now)
                try:
                    await self._database.run(lambda db: indexing_records.record_result(db, result))
                except BaseException:
                    store.index = before
                    raise
                self._changed()
        await in_thread(store.file.delete, garbage)


def stores_full(stored: int, max_bytes: int) -> str:
    """What is wrong where a project's stores have no room for more."""
    return (
        f"the project's vector stores take {stored} bytes, and their limit is {max_bytes} (HATRACK_MAX_STORES_GIB). "
        "Remove files or stores first"
    )


def _replace_document(file: PassageFile, index: Index, former: str | None, current: SearchableFile | None) -> Index:
    """The index with the document that is found now, and without the former one. Blocks."""
    old = None if former is None else index.number_of(former)
    if current is None:
        return index if old is None else index.without(old)
    loaded = file.load_one(current.generation)
    number = loaded.numbers[current.generation]
    document = Document(
        current.file_id, current.filename, current.generation, current.attributes, loaded.own.get(number, {})
    )
    return index.with_document(number, document, loaded.segments, old)


def _bytes(batch: Batch) -> int:
    return batch.segment.size + sum(
        len(passage.text.encode()) + len(passage.heading.encode()) for passage in batch.passages
    )
