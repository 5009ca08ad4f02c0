"""Indexes and kills itself: ``python -m tests.unit.service.grounding.embedded.victim HOME URL STORE DONE``.

It does so itself once DONE passages are indexed: whoever told it to from outside might be too late on a busy machine.
Before that it says its embedder's process id on standard output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from service.grounding.embeddings import Embedder, EmbedderConfig
from service.grounding.ports import FileDraft
from tests.unit.service.grounding.embedded.rig import PROJECT, Rig

LARGE = "large.csv"


async def main(home: Path, url: str, store: str, done: int) -> None:
    embedder = Embedder(EmbedderConfig(home / "embedder", model="words", url=url))
    async with Rig(home, embedder).open() as rig:
        await rig.stores.add_files(PROJECT, store, [FileDraft(LARGE, LARGE)])
        while True:
            file = await rig.stores.get_file(PROJECT, store, LARGE)
            assert file is not None
            if file.status != "in_progress":
                sys.exit(f"it is {file.status} and was to be killed before")
            if file.done >= done:
                print(embedder.pid, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
