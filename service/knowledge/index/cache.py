"""Cache of open stores: opened on demand, evicted when the memory limit is exceeded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.concurrency import Locks, in_thread
from service.grounding.provider import Attribute
from service.knowledge.index.memory import Index
from service.knowledge.index.passage_records import PassageFile, remove

MAX_OPEN: Final = 256
"""Passage files that are open at once, beside those in use."""
SUFFIX: Final = ".db"


@dataclass(slots=True)
class CachedStore:
    """A store's passage file, and its index where that is loaded."""

    file: PassageFile
    index: Index | None = None
    users: int = 0
    remove_on_release: bool = field(default=False)
    """The file is deleted once there are no users."""


class IndexCache:
    """Open stores by id; those unused for longest are closed when a limit is exceeded.

    Args:
        root: The directory of the passage files.
        memory_bytes: Memory limit for the indexes; stores in use are never evicted.
    """

    def __init__(self, root: Path, memory_bytes: int) -> None:
        self._root = root
        self._memory_bytes = memory_bytes
        self._open: OrderedDict[str, CachedStore] = OrderedDict()
        self._opening = Locks()

    def clean(self, store_ids: set[str]) -> int:
        """Create the directory and remove the files of all stores but ``store_ids``; returns how many. Blocks."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o700)
        orphans = [path for path in self._root.glob(f"*{SUFFIX}") if path.name.removesuffix(SUFFIX) not in store_ids]
        for path in orphans:
            remove(path)
        return len(orphans)

    def stored_ids(self) -> set[str]:
        """The ids of the stores that have a file. Blocks."""
        return {path.name.removesuffix(SUFFIX) for path in self._root.glob(f"*{SUFFIX}")}

    async def close(self) -> None:
        """Close all files."""
        while self._open:
            _, store = self._open.popitem()
            await in_thread(store.file.close)

    @asynccontextmanager
    async def use(self, store_id: str) -> AsyncIterator[CachedStore]:
        """Open the store, and keep it open as long as the context lasts. ``store_id`` must be the id of a store."""
        async with self._opening.hold(store_id):
            store = self._open.get(store_id)
            if store is None:
                store = CachedStore(await in_thread(PassageFile, self._path(store_id)))
                self._open[store_id] = store
            store.users += 1
        self._open.move_to_end(store_id)
        try:
            yield store
        finally:
            store.users -= 1
            if store.remove_on_release and store.users == 0:
                await in_thread(self._remove, store)
            else:
                await self._make_room()

    async def remove(self, store_id: str) -> None:
        """Remove a store's file, now or when its last user leaves."""
        async with self._opening.hold(store_id):
            store = self._open.pop(store_id, None)
            if store is None:
                await in_thread(remove, self._path(store_id))
                return
            store.remove_on_release = True
            if store.users == 0:
                await in_thread(self._remove, store)

    def loaded(self, store_id: str) -> CachedStore | None:
        """The store if it is open, else None; valid only until the next await."""
        return self._open.get(store_id)

    def apply_attributes(self, store_id: str, attributes: Mapping[str, Mapping[str, Attribute]]) -> None:
        """Other metadata of files, by their ids, where the store's index is in memory."""
        store = self._open.get(store_id)
        if store is not None and store.index is not None:
            store.index = store.index.with_attributes({file_id: dict(values) for file_id, values in attributes.items()})

    async def delete_documents(self, store_id: str, garbage: Sequence[str]) -> None:
        """Delete documents that nothing refers to any more; of a store that is not open, its next load does it."""
        if garbage and store_id in self._open:
            async with self.use(store_id) as used:
                await in_thread(used.file.delete, garbage)

    async def _make_room(self) -> None:
        used_bytes = sum(store.index.bytes for store in self._open.values() if store.index is not None)
        for store_id, store in list(self._open.items()):
            if used_bytes <= self._memory_bytes and len(self._open) <= MAX_OPEN:
                return
            if store.users == 0 and self._open.get(store_id) is store:
                del self._open[store_id]
                used_bytes -= store.index.bytes if store.index is not None else 0
                await in_thread(store.file.close)

    def _path(self, store_id: str) -> Path:
        return self._root / f"{store_id}{SUFFIX}"

    @staticmethod
    def _remove(store: CachedStore) -> None:
        store.file.close()
        remove(store.file.path)
