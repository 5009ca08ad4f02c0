"""kill -9 in the middle of indexing: what was there is there, what was half written is not, and it goes on."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.unit.service.knowledge.index.killed_indexer import LARGE
from tests.unit.service.knowledge.index.local_stores import LocalStores, SharedEmbedder

ROWS = 1500
WAIT_S = 120.0


async def kill_at(home: Path, url: str, store: str, done: int) -> int:
    """Run the indexer, which is killed once it has indexed so many; its embedder's process id."""
    module = "tests.unit.service.knowledge.index.killed_indexer"
    command = (sys.executable, "-m", module, str(home), url, store, str(done))
    indexer = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        async with asyncio.timeout(WAIT_S):
            said, _ = await indexer.communicate()
    finally:
        if indexer.returncode is None:
            indexer.kill()
            await indexer.wait()
    assert indexer.returncode == -signal.SIGKILL, "it is killed before it is done"
    return int(said)


async def ended(pid: int) -> None:
    async with asyncio.timeout(WAIT_S):
        with suppress(psutil.NoSuchProcess):
            # nobody may have buried it: the first process of a container need not
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 (it is no child of ours)
                await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.parametrize("done", [1, ROWS // 2])
async def test_a_killed_gateway_loses_nothing_that_was_there(tmp_path: Path, words: SharedEmbedder, done: int) -> None:
    async with LocalStores(tmp_path, words).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "small.txt", "anchor")
        local_stores.write(LARGE, "n\n" + "".join(f"boots {number}\n" for number in range(ROWS)))
    embedder = await kill_at(tmp_path, words.config.url, store, done)
    await ended(embedder)

    path = tmp_path / "stores" / f"{store}.db"
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        left = db.execute("SELECT count(*) FROM passages").fetchone()[0]
    db.close()
    assert 1 < left < ROWS, "some of it was written"

    async with LocalStores(tmp_path, words).open() as local_stores:
        assert await local_stores.texts(store, "anchor") == ["anchor"], "before the rest is indexed"
        file = await local_stores.settled(store, LARGE)
        assert (file.status, file.passages) == ("completed", ROWS)
        async with local_stores.stores.opened(store) as index:
            assert index.rows == ROWS + 1
        assert await local_stores.texts(store, f"boots {ROWS - 1}", k=1) == [f"n: boots {ROWS - 1}"]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM passages").fetchone()[0] == ROWS + 1
        assert db.execute("SELECT count(*) FROM documents").fetchone()[0] == 2
    db.close()


async def test_what_a_deleted_store_left_is_removed_at_the_next_start(tmp_path: Path, words: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, words).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "a.txt", "boots")
    (tmp_path / "stores" / "vs_gone.db").write_bytes(b"left")
    async with LocalStores(tmp_path, words).open() as local_stores:
        assert [path.name for path in local_stores.passages.glob("*.db")] == [f"{store}.db"]
        assert await local_stores.texts(store, "boots") == ["boots"]


async def test_documents_that_nothing_refers_to_are_swept(tmp_path: Path, words: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, words).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "a.txt", "boots")
        await local_stores.add(store, "b.txt", "parcel")
        # as if the process had been killed between the two databases
        await local_stores.database.run(
            lambda db: db.exec_driver_sql("DELETE FROM store_files WHERE file_id = 'b.txt'")
        )
    async with LocalStores(tmp_path, words).open() as local_stores:
        assert await local_stores.texts(store, "parcel") == []
    with sqlite3.connect(tmp_path / "stores" / f"{store}.db") as db:
        assert db.execute("SELECT text FROM passages").fetchall() == [("boots",)]
    db.close()
