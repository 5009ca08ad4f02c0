"""Stores over a real database, with the real embedder's process; by default its vectors come from a small endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from service.database import Database
from service.grounding.provider import Passage
from service.knowledge.embeddings import Embedder
from service.knowledge.index.stores import DEFAULT_MEMORY_BYTES, Stores
from service.knowledge.types import Chunking, FileInfo, NewStoreFile

WAIT_S = 240.0
PROJECT = "default"


class SharedEmbedder(Embedder):
    """One that outlives the stores that use it."""

    async def close(self) -> None:
        """Stays."""

    async def end(self) -> None:
        """End it after all."""
        await super().close()


class LocalStores:
    """Stores under a directory, and what tests say to them."""

    def __init__(self, home: Path, embedder: Embedder, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        self.home = home
        self.files = home / "files"
        self.files.mkdir(exist_ok=True)
        self.passages = home / "stores"
        self.database = Database(home / "hatrack.db")
        self.stores = Stores(
            self.database,
            self.passages,
            embedder,
            lambda file_id: nullcontext(self.files / file_id),
            memory_bytes=memory_bytes,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[LocalStores]:
        await self.database.open()
        try:
            await self.stores.open()
            yield self
            await self.stores.close()
        finally:
            await self.database.close()

    async def store(self, project: str = PROJECT) -> str:
        return (await self.stores.create_store(project, "shop", metadata={})).id

    def write(self, name: str, text: str | bytes) -> None:
        (self.files / name).write_bytes(text.encode() if isinstance(text, str) else text)

    async def add(
        self,
        store: str,
        name: str,
        text: str | bytes,
        attributes: dict[str, Any] | None = None,
        chunking: Chunking | None = None,
    ) -> FileInfo:
        """Add a file, and wait for what comes of it."""
        self.write(name, text)
        await self.stores.add_files(PROJECT, store, [NewStoreFile(name, name, attributes or {}, chunking)])
        return await self.settled(store, name)

    async def settled(self, store: str, name: str) -> FileInfo:
        async with asyncio.timeout(WAIT_S):
            while True:
                file = await self.stores.get_file(PROJECT, store, name)
                assert file is not None
                if file.status != "in_progress":
                    return file
                await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once it holds; for what stays so."""
        async with asyncio.timeout(WAIT_S):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.01)

    async def search(self, stores: str | list[str], text: str, *, project: str = PROJECT, **more: Any) -> list[Passage]:
        asked: dict[str, Any] = {"filters": None, "k": 10, "threshold": 0.05, **more}
        deadline = asyncio.get_running_loop().time() + WAIT_S
        named = [stores] if isinstance(stores, str) else stores
        return list(await self.stores.search(project, named, text, deadline=deadline, **asked))

    async def texts(self, stores: str | list[str], text: str, **more: Any) -> list[str]:
        return [passage.text for passage in await self.search(stores, text, **more)]
