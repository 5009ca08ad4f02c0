"""Indexes until it is killed: ``python -m tests.unit.service.grounding.embedded.victim HOME URL STORE``.

A line on standard output says how far it is.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from service.grounding.embeddings import Embedder, EmbedderConfig
from service.grounding.ports import FileDraft
from tests.unit.service.grounding.embedded.rig import PROJECT, Rig

LARGE = "large.csv"


async def main(home: Path, url: str, store: str) -> None:
    embedder = Embedder(EmbedderConfig(home / "embedder", model="words", url=url))
    async with Rig(home, embedder).open() as rig:
        await rig.stores.add_files(PROJECT, store, [FileDraft(LARGE, LARGE)])
        while True:
            file = await rig.stores.get_file(PROJECT, store, LARGE)
            assert file is not None
            print(embedder.pid, file.status, file.done, flush=True)
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
