"""Indexes and kills itself: ``python -m tests.unit.service.knowledge.index.killed_indexer HOME URL STORE DONE``.

It does so in the thread that writes, after the first write that makes them DONE passages: whoever looked from beside
might be too late on a busy machine. Before that it says its embedder's process id on standard output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.knowledge.embeddings import Embedder, EmbedderConfig
from service.knowledge.index.passage_records import PassageFile
from service.knowledge.types import NewStoreFile
from tests.unit.service.knowledge.index.local_stores import PROJECT, LocalStores

LARGE = "large.csv"


async def main(home: Path, url: str, store: str, done: int) -> None:
    embedder = Embedder(EmbedderConfig(home / "embedder", model="words", url=url))
    write = PassageFile.add
    written = 0

    def write_and_die(self: PassageFile, document: int, segment: Any, passages: Sequence[Any]) -> int:
        nonlocal written
        number = write(self, document, segment, passages)
        written += len(passages)
        if written >= done:
            print(embedder.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    PassageFile.add = write_and_die  # type: ignore[method-assign]
    async with LocalStores(home, embedder).open() as local_stores:
        await local_stores.stores.add_files(PROJECT, store, [NewStoreFile(LARGE, LARGE)])
        await local_stores.settled(store, LARGE)
    sys.exit("it was to be killed before")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
