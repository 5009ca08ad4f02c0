"""Loads the indexes of stores: each once for all who ask."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from service.concurrency import Locks, in_thread
from service.database import Database
from service.knowledge.embeddings import Embedder
from service.knowledge.index import indexing_records
from service.knowledge.index.cache import CachedStore, IndexCache
from service.knowledge.index.memory import Index
from service.knowledge.index.searching import load_store

LOADERS: Final = 2  # stores loaded at once: the threads that open files and answer others are not all theirs
_LOG: Final = logging.getLogger("hatrack.grounding")


class IndexLoader:
    """Loads what is searchable of a store, as the database says it.

    Args:
        locks: Held by store id while what is found in it changes.
    """

    def __init__(self, database: Database, cache: IndexCache, embedder: Embedder, locks: Locks) -> None:
        self._database = database
        self._cache = cache
        self._embedder = embedder
        self._locks = locks
        self._loading: dict[str, asyncio.Task[Index]] = {}
        self._loaders = asyncio.Semaphore(LOADERS)

    async def index(self, store_id: str, store: CachedStore) -> Index:
        """The store's index, loaded where it is not: once for all who ask, and on after they have given up."""
        if store.index is not None:
            return store.index
        load = self._loading.get(store_id)
        if load is None:
            load = asyncio.create_task(self._load(store_id), name="grounding-load")
            self._loading[store_id] = load
            load.add_done_callback(partial(self._loaded, store_id))
        return await asyncio.shield(load)

    async def close(self) -> None:
        """Give up what is being loaded."""
        loading = list(self._loading.values())
        for load in loading:
            load.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    async def _load(self, store_id: str) -> Index:
        async with self._cache.use(store_id) as store, self._loaders, self._locks.hold(store_id):
            if store.index is None:
                files, writing = await self._database.run(
                    lambda db: indexing_records.searchable_files(db, store_id, self._embedder.identity)
                )
                store.index = await in_thread(load_store, store.file, files, writing)
            return store.index

    def _loaded(self, store_id: str, load: asyncio.Task[Index]) -> None:
        del self._loading[store_id]
        if not load.cancelled() and load.exception() is not None:  # perhaps nobody waits for it any more
            _LOG.warning("a vector store could not be loaded", extra={"store": store_id}, exc_info=load.exception())
