"""The embedded stores: what the routes, the hook and the commands ask."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from service.concurrency import Locks, in_thread
from service.database import Database
from service.errors import HatrackError
from service.grounding.provider import Attribute, Filters, Passage
from service.knowledge.embeddings import Embedder
from service.knowledge.index import indexing_records, records
from service.knowledge.index.cache import IndexCache
from service.knowledge.index.indexing import Indexing, LocalFile
from service.knowledge.index.loading import IndexLoader
from service.knowledge.index.memory import Index
from service.knowledge.index.ranking import DEFAULT_VECTOR_WEIGHT, Question
from service.knowledge.index.records import Also, nothing, together
from service.knowledge.index.searching import OpenStore, SearchPool, join_passages
from service.knowledge.segment import Vectors
from service.knowledge.terms import Analyzer
from service.knowledge.types import BatchInfo, FileInfo, FilePage, FileStatus, NewStoreFile, StoreInfo

STORE_ID_PREFIX: Final = "vs_"
DEFAULT_MEMORY_BYTES: Final = 1 << 30
MAX_QUESTION: Final = 2_000
"""Characters of a question that are looked for: of a longer one its beginning and its end."""
MAX_TERMS: Final = 256
MAX_CACHED: Final = 4_096
TOUCH_S: Final = 30.0  # seconds between two writes of when stores were last used
_LOG: Final = logging.getLogger("hatrack.grounding")


class Stores:
    """The embedded stores of all projects.

    A store of another project answers exactly as one that does not exist. Which stores a key may read inside a project
    is decided by the callers. No method blocks the event loop.

    Args:
        database: The metadata database, opened before :meth:`open`.
        root: The directory of the passage files.
        embedder: Started when there is something to embed.
        local_file: Has the bytes of a file id on the disk, and says where.
        memory_bytes: Most memory that indexes take, and the most that one store may.
        max_project_bytes: Most that the stores of one project may take on the disk; None: no limit.
        vector_weight: Of the cosine in the score, 0 to 1; BM25 has the rest.
    """

    def __init__(
        self,
        database: Database,
        root: Path,
        embedder: Embedder,
        local_file: LocalFile,
        *,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        max_project_bytes: int | None = None,
        vector_weight: float = DEFAULT_VECTOR_WEIGHT,
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._weight = vector_weight
        self._cache = IndexCache(root, memory_bytes)
        self._locks = Locks()
        self._analyzer = Analyzer()
        self._search_pool = SearchPool()
        self._indexing = Indexing(
            *(database, self._cache, embedder, local_file, self._locks, memory_bytes, max_project_bytes, self._change)
        )
        self._indexing.idle = self._write_last_used
        self._store_cache: OrderedDict[tuple[str, str], StoreInfo] = OrderedDict()
        self._epoch = 0
        self._loader = IndexLoader(database, self._cache, embedder, self._locks)
        self._last_used: dict[str, int] = {}
        self._touched = time.monotonic()

    async def open(self) -> None:
        """Clean up after a crash, and resume indexing."""
        ids = await self._database.run(records.store_ids)
        removed = await in_thread(self._cache.clean, ids)
        if removed:
            _LOG.info("removed the passages of deleted stores", extra={"stores": removed})
        outdated = await self._database.run(
            lambda db: indexing_records.requeue_outdated(db, self._embedder.identity, records.new_generation)
        )
        if outdated:
            _LOG.warning("the embedding model has changed: reindexing files", extra={"files": outdated})
        # whoever starts a gateway may have mended what they failed for: a key, an address, a setting
        retried = await self._database.run(lambda db: indexing_records.requeue_failed(db, records.new_generation))
        if retried:
            _LOG.warning("retrying files that failed because of a server error", extra={"files": retried})
        if ids:
            self._embedder.start()  # it takes seconds, and the first question should not wait for them
        self._indexing.start()
        self._database.resync.add(self._reload)

    async def _reload(self) -> None:
        """Follow the database, which may have saved what a request that failed has not seen through."""
        stored = await in_thread(self._cache.stored_ids)  # first: what is not in the database behind that was deleted
        ids = await self._database.run(records.store_ids)
        self._change()
        for store_id in stored:
            async with self._locks.hold(store_id):
                if store_id not in ids:
                    self._indexing.drop_store(store_id)
                    await self._cache.remove(store_id)
                elif (store := self._cache.loaded(store_id)) is not None:
                    store.index = None  # the next search loads it
        self._indexing.wake()

    async def close(self) -> None:
        """Stop indexing and the embedder, and close all files."""
        with suppress(ValueError):  # it was never opened
            await self._database.resync.remove(self._reload)
        await self._indexing.close()
        await self._write_last_used(now=True)
        await self._embedder.close()
        await self._loader.close()
        await self._search_pool.close()
        await self._cache.close()

    # stores

    async def create_store(
        self,
        project: str,
        name: str | None,
        *,
        description: str | None = None,
        metadata: Mapping[str, str],
        fill: Callable[[sa.Connection, str], Sequence[NewStoreFile]] | None = None,
    ) -> StoreInfo:
        """Create a store with the files that ``fill`` gives for its id, in one transaction. Raises NotFound (no such
        project), Conflict (it has MAX_STORES stores)."""
        store_id = f"{STORE_ID_PREFIX}{secrets.token_hex(12)}"

        def work(db: sa.Connection) -> StoreInfo:
            store = records.create_store(db, store_id, project, name, description, metadata)
            if fill is not None:
                records.add_files(db, project, store_id, fill(db, store_id))
            return store

        store = await self._database.run(work)
        self._embedder.start()
        self._indexing.wake()
        return store

    async def get_store(self, project: str, store_id: str) -> StoreInfo | None:
        """The store, or None; cached, because the data path asks for it."""
        cached = self._store_cache.get((project, store_id))
        if cached is not None:
            return cached
        epoch = self._epoch
        stores = await self._database.run(lambda db: records.find_stores(db, project, store_id))
        if not stores:
            return None
        if epoch == self._epoch:  # else it may be older than what was changed meanwhile
            self._store_cache[project, store_id] = stores[0]
            while len(self._store_cache) > MAX_CACHED:
                self._store_cache.popitem(last=False)
        return stores[0]

    async def list_stores(self, project: str) -> Sequence[StoreInfo]:
        """All stores of a project, oldest first."""
        return await self._database.run(lambda db: records.find_stores(db, project))

    async def update_store(self, store: StoreInfo, *, also: Also = nothing) -> StoreInfo:
        """Write a store's name, description and metadata. Raises NotFound."""
        work = together(also, lambda db: records.update_store(db, store))
        store = await self._database.run(work)
        self._change()
        return store

    async def delete_store(self, project: str, store_id: str, *, also: Also = nothing) -> None:
        """Delete a store and its passages; the next search does not find it. Raises NotFound."""
        work = together(also, lambda db: records.delete_store(db, project, store_id))
        async with self._locks.hold(store_id):
            await self._database.run(work)
            self._change()
            self._indexing.drop_store(store_id)
            await self._cache.remove(store_id)

    # files

    async def add_files(
        self,
        project: str,
        store_id: str,
        drafts: Sequence[NewStoreFile],
        *,
        batch: bool = False,
        named: Callable[[sa.Connection], Sequence[NewStoreFile]] | None = None,
    ) -> tuple[Sequence[FileInfo], BatchInfo | None]:
        """Add files, all or none; they are indexed in the background, in this order, and searchable once `completed`.

        A file that the store already has gets the draft's attributes, and is indexed anew where its chunking differs or
        it had failed or was cancelled; while that goes on, what was indexed before is still found.

        With ``batch`` they become one (id ``vsfb_…``), to be cancelled together. ``named`` gives the drafts with their
        filenames, in the same transaction. Raises NotFound; Conflict where the store would have more than MAX_FILES.
        """
        batch_id = f"vsfb_{secrets.token_hex(12)}" if batch else None

        def work(db: sa.Connection) -> tuple[list[FileInfo], BatchInfo | None]:
            return records.add_files(db, project, store_id, drafts if named is None else named(db), batch_id)

        async with self._locks.hold(store_id):
            files, made = await self._database.run(work)
            self._change()
            # those that were there already: the next search sees their new metadata
            self._cache.apply_attributes(store_id, {draft.file_id: draft.attributes for draft in drafts})
        self._indexing.wake()
        return [self._indexing.with_progress(file) for file in files], made

    async def get_file(self, project: str, store_id: str, file_id: str) -> FileInfo | None:
        """A file in a store; None if the store or the file does not exist."""
        file = await self._database.run(lambda db: records.find_file(db, project, store_id, file_id))
        return None if file is None else self._indexing.with_progress(file)

    async def list_files(
        self,
        project: str,
        store_id: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int,
        newest_first: bool = True,
        status: FileStatus | None = None,
        batch_id: str | None = None,
    ) -> FilePage:
        """A page of a store's files, or of a batch's, between two file ids. Raises NotFound, BadRequest."""
        page = await self._database.run(
            lambda db: records.page(
                db,
                project,
                store_id,
                after=after,
                before=before,
                limit=limit,
                newest_first=newest_first,
                status=status,
                batch_id=batch_id,
            )
        )
        return FilePage([self._indexing.with_progress(file) for file in page.files], page.has_more)

    async def set_attributes(
        self, project: str, store_id: str, file_id: str, attributes: Mapping[str, Attribute]
    ) -> FileInfo:
        """Replace a file's attributes; they apply from the next search on. Raises NotFound."""
        async with self._locks.hold(store_id):
            file = await self._database.run(
                lambda db: records.set_attributes(db, project, store_id, file_id, attributes)
            )
            self._cache.apply_attributes(store_id, {file_id: attributes})
        return self._indexing.with_progress(file)

    async def remove_file(self, project: str, store_id: str, file_id: str, *, also: Also = nothing) -> None:
        """Remove a file from a store; the next search does not find it. Raises NotFound."""
        work = together(also, lambda db: records.remove_file(db, project, store_id, file_id))
        async with self._locks.hold(store_id):
            garbage = await self._database.run(work)
            self._change()
            self._indexing.drop(set(garbage))
            store = self._cache.loaded(store_id)
            if store is not None and store.index is not None:
                store.index = store.index.without_generations(set(garbage))
        try:
            await self._cache.delete_documents(store_id, garbage)
        except HatrackError as error:  # on a full disk; they stay until the store is loaded again
            _LOG.warning("passages of a removed file are still on the disk", extra={"reason": error.message})

    async def file_text(self, project: str, store_id: str, file_id: str) -> str:
        """The text extracted from a file; empty until it is indexed. Raises NotFound."""
        row = await self._database.run(lambda db: records.demand_file(db, project, store_id, file_id))
        if row["generation"] is None:
            return ""
        async with self._cache.use(store_id) as store:
            return join_passages(await in_thread(store.file.document, row["generation"]))

    async def get_batch(self, project: str, store_id: str, batch_id: str) -> BatchInfo | None:
        """The batch; None if it does not exist."""
        return await self._database.run(lambda db: records.find_batch(db, project, store_id, batch_id))

    async def cancel_batch(self, project: str, store_id: str, batch_id: str, *, also: Also = nothing) -> BatchInfo:
        """Cancel the files of a batch that are still in progress. Raises NotFound."""
        work = together(also, lambda db: records.cancel_batch(db, project, store_id, batch_id))
        async with self._locks.hold(store_id):
            batch, garbage = await self._database.run(work)
            self._change()
            self._indexing.drop(set(garbage))
        return batch

    async def contents(self) -> Sequence[tuple[str, str]]:
        """The (store id, file id) of every file in every store; their bytes must be kept."""
        return await self._database.run(records.contents)

    # search

    async def search(
        self,
        project: str,
        store_ids: Sequence[str],
        text: str,
        *,
        filters: Filters | None,
        k: int,
        threshold: float | None,
        deadline: float,
    ) -> Sequence[Passage]:
        """Up to ``k`` passages of these stores together, best first; stores that no longer exist are skipped.

        ``filters`` must be checked already; ``threshold`` is of the fused score, 0 to 1; ``deadline`` is on the event
        loop's clock, seconds. Raises TimeoutError after it, HatrackError where embedder or database cannot be used.
        """
        question = text.strip()
        if len(question) > MAX_QUESTION:
            question = f"{question[: MAX_QUESTION // 2]} {question[-MAX_QUESTION // 2 :]}"
        readable = [
            store_id for store_id in dict.fromkeys(store_ids) if await self.get_store(project, store_id) is not None
        ]
        if not question or not readable:
            return []
        now = int(time.time())
        self._last_used.update(dict.fromkeys(readable, now))
        async with asyncio.timeout_at(deadline):
            # the vector is made while the stores are loaded
            vector = asyncio.ensure_future(self._embedder.question(question, deadline))
            try:
                return await self._search(readable, question, vector, filters, k, threshold or 0.0)
            finally:
                vector.cancel()
                await asyncio.gather(vector, return_exceptions=True)

    def loaded(self, store_id: str) -> bool:
        """Whether the index of a store is in memory."""
        store = self._cache.loaded(store_id)
        return store is not None and store.index is not None

    @asynccontextmanager
    async def opened(self, store_id: str) -> AsyncIterator[Index]:
        """The index of any project's store, kept in memory as long as the context lasts."""
        async with self._cache.use(store_id) as store:
            yield await self._loader.index(store_id, store)

    async def _search(
        self,
        store_ids: Sequence[str],
        text: str,
        vector: asyncio.Future[Vectors],
        filters: Filters | None,
        k: int,
        threshold: float,
    ) -> list[Passage]:
        async with AsyncExitStack() as contexts:
            cached = [
                (store_id, await contexts.enter_async_context(self._cache.use(store_id))) for store_id in store_ids
            ]
            terms = tuple(dict.fromkeys(self._analyzer.terms(text)))[:MAX_TERMS]
            while True:
                indexes = [(store_id, store, await self._loader.index(store_id, store)) for store_id, store in cached]
                open_stores = [
                    OpenStore(store_id, store.file, index) for store_id, store, index in indexes if index.parts
                ]
                if not open_stores:
                    return []
                question = Question(terms, await vector, self._weight, k, threshold)
                passages, complete = await self._search_pool.search(contexts, open_stores, question, filters)
                if complete or all(store.index is index for _, store, index in indexes):
                    return passages
                # a document was replaced in the midst: its new text is in the index by now, the old one's has gone

    def _change(self) -> None:
        self._epoch += 1
        self._store_cache.clear()

    async def _write_last_used(self, *, now: bool = False) -> None:
        if self._last_used and (now or time.monotonic() - self._touched > TOUCH_S):
            used, self._last_used = self._last_used, {}
            self._touched = time.monotonic()
            await self._database.run(lambda db: records.touch(db, used))
            self._change()
