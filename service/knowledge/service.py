"""Vector stores for callers: who may see and change what, which files they hold, and what the audit says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import sqlalchemy as sa

from service.access.audit import Actor, note
from service.access.caller import Caller
from service.config import GIB, MIB, Settings
from service.database import Database
from service.errors import BadRequest, Forbidden, Internal, TooLarge, Unavailable
from service.files.service import Files
from service.grounding.provider import Attribute, Filters, Passage, Query, store_not_found
from service.grounding.required_filters import required_values, restrict
from service.knowledge.embeddings import Embedder, EmbedderConfig
from service.knowledge.file_holds import FileHolds, place_holds, release_holds
from service.knowledge.index import indexing_records
from service.knowledge.index.indexing import stores_full
from service.knowledge.index.stores import STORE_ID_PREFIX, Stores
from service.knowledge.types import (
    BatchInfo,
    Chunking,
    FileInfo,
    FilePage,
    FileStatus,
    NewStoreFile,
    StoreInfo,
    batch_not_found,
    file_not_in_store,
)

SEARCH_TIMEOUT_S: Final = 10.0


class Knowledge:
    """The vector stores as callers see them; one that the caller's key may not read is treated as nonexistent.

    Args:
        stores: The embedded stores; opened and closed here.
        file_holds: Holds of the stores on uploaded files.
        database: For the audit.
        embedder: The stores', which starts when it is first needed.
        max_project_bytes: Most that the stores of one project may take on the disk; None: no limit.
    """

    def __init__(
        self,
        stores: Stores,
        file_holds: FileHolds,
        database: Database,
        embedder: Embedder,
        max_project_bytes: int | None = None,
    ) -> None:
        self.embedder = embedder
        self._max_project_bytes = max_project_bytes
        self._stores = stores
        self._file_holds = file_holds
        self._database = database

    @classmethod
    def from_settings(cls, settings: Settings, database: Database, files: Files) -> Knowledge:
        """The stores under the gateway's home, with the files and the embedding model that the settings name."""
        embedder = Embedder(EmbedderConfig.from_settings(settings))
        max_project_bytes = None if settings.max_stores_gib is None else int(settings.max_stores_gib * GIB)
        stores = Stores(
            database,
            settings.home / "grounding",
            embedder,
            files.local,
            memory_bytes=settings.grounding_memory_mib * MIB,
            max_project_bytes=max_project_bytes,
            vector_weight=settings.grounding_vector_weight,
        )
        return cls(stores, FileHolds(files, database), database, embedder, max_project_bytes)

    async def open(self) -> None:
        """Open the stores, and make their holds on uploaded files match their contents."""
        await self._stores.open()
        await self._file_holds.reconcile(set(await self._stores.contents()))

    async def close(self) -> None:
        """Close the stores."""
        await self._stores.close()

    # stores

    async def create(
        self,
        caller: Caller,
        actor: Actor,
        *,
        name: str | None,
        description: str | None,
        metadata: Mapping[str, str],
        file_ids: Sequence[str],
        chunking: Chunking | None,
    ) -> StoreInfo:
        """Create a store with the files in ``file_ids``, both or neither; they are indexed in the background.

        Raises:
            Forbidden: The key's globs do not match the name.
            NotFound: The project or a file does not exist.
            TooLarge: The project's stores have no room left, and there are files to add.
        """
        self._check_name(caller, name)
        if file_ids:
            await self._demand_room(caller.project, "file_ids")
        ids = list(dict.fromkeys(file_ids))

        def fill(db: sa.Connection, store_id: str) -> list[NewStoreFile]:
            rows = place_holds(db, caller, ids, "file_ids", store_id)
            note(db, actor, "store.create", store_id, {"name": name})
            if ids:
                note(db, actor, "store.add", store_id, {"files": ids[:100], "count": len(ids)})
            return [NewStoreFile(row.id, row.filename, chunking=chunking) for row in rows]

        store = await self._stores.create_store(
            caller.project, name, description=description, metadata=metadata, fill=fill
        )
        return await self.show(caller, store.id)

    async def _delete(self, actor: Actor, store: StoreInfo) -> None:
        def also(db: sa.Connection) -> None:
            release_holds(db, store.id)
            note(db, actor, "store.delete", store.id, {"name": store.name})

        await self._stores.delete_store(store.project, store.id, also=also)
        await self._file_holds.collect()

    async def show(self, caller: Caller, store_id: str) -> StoreInfo:
        """The store. Raises NotFound if it does not exist or the key may not read it."""
        return await self._readable(caller, store_id, "vector_store_id")

    async def _readable(self, caller: Caller, store_id: str, param: str) -> StoreInfo:
        store = await self._stores.get_store(caller.project, store_id)
        if store is None or not _may_read(caller, store):
            is_id = store_id.startswith(STORE_ID_PREFIX)
            hint = "" if is_id else f"; stores go by their id (`{STORE_ID_PREFIX}…`), which the list of stores has"
            raise store_not_found(store_id, param, hint=hint)
        return store

    async def page(
        self, caller: Caller, *, after: str | None, before: str | None, limit: int, newest_first: bool
    ) -> tuple[list[StoreInfo], bool]:
        """Up to ``limit`` stores that the caller may read, and whether more follow. Raises BadRequest."""
        stores = [store for store in await self._stores.list_stores(caller.project) if _may_read(caller, store)]
        if newest_first:
            stores.reverse()
        ids = [store.id for store in stores]
        start, end = 0, len(stores)
        if after is not None:
            start = _position(ids, after, "after") + 1
        if before is not None:
            end = _position(ids, before, "before")
            start = max(start, end - limit) if after is None else start
        return stores[start:end][:limit], end - start > limit or (before is not None and after is None and start > 0)

    async def update(
        self,
        caller: Caller,
        actor: Actor,
        store_id: str,
        *,
        name: str | None,
        description: str | None,
        metadata: Mapping[str, str] | None,
    ) -> StoreInfo:
        """Change a store's name, description or metadata; None leaves it unchanged. Raises NotFound, Forbidden."""
        store = await self.show(caller, store_id)
        if name is not None:
            self._check_name(caller, name)
        changed = replace(
            store,
            name=store.name if name is None else name,
            description=store.description if description is None else description,
            metadata=store.metadata if metadata is None else metadata,
        )
        noted = {"name": name} if name is not None else None
        return await self._stores.update_store(
            changed, also=lambda db: note(db, actor, "store.update", store_id, noted)
        )

    async def delete(self, caller: Caller, actor: Actor, store_id: str) -> None:
        """Delete a store; its files stay on the list of files. Raises NotFound."""
        store = await self.show(caller, store_id)
        await asyncio.shield(asyncio.ensure_future(self._delete(actor, store)))

    # files

    async def add(
        self, caller: Caller, actor: Actor, store_id: str, drafts: Sequence[NewStoreFile], *, param: str
    ) -> Sequence[FileInfo]:
        """Add files to a store; they are indexed in the background.

        Args:
            drafts: Without filenames, which are looked up.

        Raises:
            NotFound: The store or a file does not exist.
            BadRequest: A file's purpose is not one for documents.
            Conflict: The store is full.
        """
        return (await self._add(caller, actor, store_id, drafts, batch=False, param=param))[0]

    async def add_batch(
        self, caller: Caller, actor: Actor, store_id: str, drafts: Sequence[NewStoreFile], *, param: str
    ) -> BatchInfo:
        """Add files to a store as one batch, which can be cancelled as a whole. Raises as ``add``."""
        _, batch = await self._add(caller, actor, store_id, drafts, batch=True, param=param)
        if batch is None:
            raise Internal("the batch was not created")
        return batch

    async def _demand_room(self, project: str, param: str) -> None:
        """Raise TooLarge if the project's stores are full already: what is added is measured as it is indexed."""
        if self._max_project_bytes is None:
            return
        stored = await self._database.run(partial(indexing_records.project_usage_bytes, project=project))
        if stored >= self._max_project_bytes:
            raise TooLarge(stores_full(stored, self._max_project_bytes), param=param, code="project_storage_full")

    async def _add(
        self, caller: Caller, actor: Actor, store_id: str, drafts: Sequence[NewStoreFile], *, batch: bool, param: str
    ) -> tuple[Sequence[FileInfo], BatchInfo | None]:
        await self.show(caller, store_id)
        ids = [draft.file_id for draft in drafts]
        known = {file_id for file_id in ids if await self._stores.get_file(caller.project, store_id, file_id)}
        if known != set(ids):
            await self._demand_room(caller.project, param)

        def named(db: sa.Connection) -> list[NewStoreFile]:
            rows = place_holds(db, caller, ids, param, store_id)
            note(db, actor, "store.add", store_id, {"files": ids[:100], "count": len(ids)})
            return [
                NewStoreFile(draft.file_id, row.filename, draft.attributes, draft.chunking)
                for draft, row in zip(drafts, rows, strict=True)
            ]

        return await self._stores.add_files(caller.project, store_id, drafts, batch=batch, named=named)

    async def file(self, caller: Caller, store_id: str, file_id: str) -> FileInfo:
        """A file in a store. Raises NotFound."""
        await self.show(caller, store_id)
        file = await self._stores.get_file(caller.project, store_id, file_id)
        if file is None:
            raise file_not_in_store(store_id, file_id)
        return file

    async def files(
        self,
        caller: Caller,
        store_id: str,
        *,
        after: str | None,
        before: str | None,
        limit: int,
        newest_first: bool,
        status: FileStatus | None,
        batch_id: str | None = None,
    ) -> FilePage:
        """A page of the files in a store, or of those in a batch. Raises NotFound, BadRequest."""
        await self.show(caller, store_id)
        return await self._stores.list_files(
            caller.project,
            store_id,
            after=after,
            before=before,
            limit=limit,
            newest_first=newest_first,
            status=status,
            batch_id=batch_id,
        )

    async def set_attributes(
        self, caller: Caller, store_id: str, file_id: str, attributes: Mapping[str, Attribute]
    ) -> FileInfo:
        """Replace a file's attributes. Raises NotFound."""
        await self.file(caller, store_id, file_id)
        return await self._stores.set_attributes(caller.project, store_id, file_id, attributes)

    async def remove(self, caller: Caller, actor: Actor, store_id: str, file_id: str) -> None:
        """Remove a file from a store. Raises NotFound."""
        await self.file(caller, store_id, file_id)
        await asyncio.shield(asyncio.ensure_future(self._remove(caller.project, actor, store_id, file_id)))

    async def _remove(self, project: str, actor: Actor, store_id: str, file_id: str) -> None:
        def also(db: sa.Connection) -> None:
            release_holds(db, store_id, [file_id])
            note(db, actor, "store.remove", store_id, {"file": file_id})

        await self._stores.remove_file(project, store_id, file_id, also=also)
        await self._file_holds.collect()

    async def text(self, caller: Caller, store_id: str, file_id: str) -> tuple[FileInfo, str]:
        """A file and the text extracted from it, empty until it is indexed. Raises NotFound."""
        file = await self.file(caller, store_id, file_id)
        return file, await self._stores.file_text(caller.project, store_id, file_id)

    # batches

    async def batch(self, caller: Caller, store_id: str, batch_id: str) -> BatchInfo:
        """A batch. Raises NotFound."""
        await self.show(caller, store_id)
        batch = await self._stores.get_batch(caller.project, store_id, batch_id)
        if batch is None:
            raise batch_not_found(store_id, batch_id)
        return batch

    async def cancel(self, caller: Caller, actor: Actor, store_id: str, batch_id: str) -> BatchInfo:
        """Cancel the files of a batch that are still in progress. Raises NotFound."""
        await self.batch(caller, store_id, batch_id)
        return await self._stores.cancel_batch(
            caller.project,
            store_id,
            batch_id,
            also=lambda db: note(db, actor, "store.cancel", store_id, {"batch": batch_id}),
        )

    # search

    async def search(
        self, caller: Caller, store_id: str, text: str, *, filters: Filters | None, k: int, threshold: float | None
    ) -> Sequence[Passage]:
        """Up to ``k`` passages of one store, best first, within the key's own filters.

        Raises:
            NotFound: The store does not exist, or the key may not read it.
            Forbidden: ``filters`` asks for another value than the key carries.
            Unavailable: It took longer than SEARCH_TIMEOUT_S.
        """
        await self.show(caller, store_id)
        filters = restrict(filters, required_values((), caller.filters, filters, "filters"))
        deadline = asyncio.get_running_loop().time() + SEARCH_TIMEOUT_S
        try:
            async with asyncio.timeout_at(deadline):
                return await self._stores.search(
                    caller.project, [store_id], text, filters=filters, k=k, threshold=threshold, deadline=deadline
                )
        except TimeoutError:
            raise Unavailable(f"the search took longer than {SEARCH_TIMEOUT_S:g} s", code="search_timeout") from None

    # as a provider of the grounding hook

    async def demand_readable(self, caller: Caller, store_ids: Sequence[str], param: str) -> None:
        """See ``service.grounding.provider.StoreAwareProvider``."""
        for store_id in store_ids:
            await self._readable(caller, store_id, param)

    async def retrieve(self, query: Query, deadline: float) -> Sequence[Passage]:
        """See ``service.grounding.provider.Provider``."""
        return await self._stores.search(
            query.project,
            query.store_ids,
            query.text,
            filters=query.filters,
            k=query.k,
            threshold=query.threshold,
            deadline=deadline,
        )

    def _check_name(self, caller: Caller, name: str | None) -> None:
        """A key that may read some stores alone can only make stores that it may read."""
        if caller.stores is not None and (name is None or not caller.may_read(name)):
            globs = ", ".join(f"`{glob}`" for glob in caller.stores) or "none"
            raise Forbidden(
                f"the API key may only use vector stores whose names match {globs}; got {name!r:.100}",
                param="name",
                code="store_not_allowed",
            )


def _position(ids: list[str], cursor: str, param: str) -> int:
    if cursor not in ids:
        raise BadRequest(f"`{param}` is not the id of a vector store in this list", param=param)
    return ids.index(cursor)


def _may_read(caller: Caller, store: StoreInfo) -> bool:
    return caller.may_read(*filter(None, (store.id, store.name)))
