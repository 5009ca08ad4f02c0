"""Trouble while files are indexed: what passes fails no file, and what does not leaves what was found before."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from service.errors import BadGateway, DiskFull, Unavailable
from service.knowledge.embeddings import Batch, EmbedderConfig, EmbedderGone, ReaderGone
from service.knowledge.index import indexing
from service.knowledge.index.passage_records import PassageFile
from service.knowledge.types import Chunking, NewStoreFile
from tests.unit.service.knowledge.documents.office_files import make_sparse_xlsx, make_xlsx
from tests.unit.service.knowledge.index.local_stores import PROJECT, LocalStores, SharedEmbedder
from tests.unit.service.knowledge.knowledge_app import embeddings, vector


class Endpoint:
    """One that answers with a status that a test sets."""

    def __init__(self) -> None:
        self.status = 200
        self.shortened = False
        self.asked = asyncio.Semaphore(0)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.release()
        if self.shortened:
            texts = (await request.json())["input"]
            rows = [{"index": at, "embedding": vector(text)[:-1]} for at, text in enumerate(texts)]
            return web.json_response({"object": "list", "data": rows})
        return await embeddings(request) if self.status == 200 else web.json_response({}, status=self.status)

    async def seen(self, times: int) -> None:
        """Wait until it was asked so often."""
        async with asyncio.timeout(240):
            for _ in range(times):
                await self.asked.acquire()


class Moody(SharedEmbedder):
    """Raises what a test says when it is to embed the named file."""

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__(config)
        self.moods: dict[str, list[Exception]] = {}

    async def passages(self, path: Path, filename: str, chunking: Chunking) -> AsyncIterator[Batch]:
        if self.moods.get(filename):
            raise self.moods[filename].pop()
        async for batch in super().passages(path, filename, chunking):
            yield batch


@pytest.fixture
async def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
async def moody(tmp_path: Path, endpoint: Endpoint) -> AsyncIterator[Moody]:
    app = web.Application()
    app.router.add_post("/v1/embeddings", endpoint.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    embedder = Moody(EmbedderConfig(tmp_path / "moody", model="words", url=url))
    yield embedder
    await embedder.end()
    await runner.cleanup()


@pytest.fixture
async def local_stores(tmp_path: Path, moody: Moody, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalStores]:
    monkeypatch.setattr(indexing, "RETRY_S", 0.01)
    monkeypatch.setattr(indexing, "MAX_PAUSE_S", 0.1)
    async with LocalStores(tmp_path, moody).open() as ready:
        yield ready


async def begin(local_stores: LocalStores, store: str, name: str, text: str = "boots", **more: Any) -> None:
    local_stores.write(name, text)
    await local_stores.stores.add_files(PROJECT, store, [NewStoreFile(name, name, **more)])


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_endpoint_fails_no_file_and_takes_nothing_away(
    local_stores: LocalStores, endpoint: Endpoint, status: int
) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(10, 0))
    endpoint.status = status
    endpoint.asked = asyncio.Semaphore(0)
    await begin(local_stores, store, "a.txt", "boots " * 30, chunking=Chunking(15, 0))
    await endpoint.seen(indexing.ATTEMPTS + 3)
    waiting = await local_stores.stores.get_file(PROJECT, store, "a.txt")
    assert waiting is not None
    assert waiting.status == "in_progress"
    assert waiting.error == ("server_error", f"waiting: the embeddings endpoint returned status {status}")
    async with local_stores.stores.opened(store) as index:
        assert index.rows == 3, "what was found before"
    endpoint.status = 200
    settled = await local_stores.settled(store, "a.txt")
    assert (settled.status, settled.passages, settled.error) == ("completed", 2, None)
    assert len(await local_stores.texts(store, "boots")) == 2


async def test_a_wrong_endpoint_fails_a_file_and_what_was_found_stays(
    tmp_path: Path, local_stores: LocalStores, moody: Moody, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(10, 0))
    endpoint.status = 401
    failed = await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(15, 0))
    assert failed.status == "failed"
    assert failed.error == ("server_error", "the embeddings endpoint returned status 401")
    endpoint.status = 200
    assert len(await local_stores.texts(store, "boots")) == 3
    # a start tries it again; what is found before that has come to its end is asked here
    monkeypatch.setattr(indexing.Indexing, "start", lambda _: None)
    other = LocalStores(tmp_path, moody)
    async with other.open():
        assert len(await other.texts(store, "boots")) == 3, "after a restart too"
    again = await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(15, 0))
    assert (again.status, again.error) == ("completed", None)
    assert len(await local_stores.texts(store, "boots")) == 2


async def test_an_endpoint_that_changes_its_dimensions_fails_files_and_questions_by_name(
    tmp_path: Path, local_stores: LocalStores, moody: Moody, endpoint: Endpoint
) -> None:
    store, loaded = await local_stores.store(), await local_stores.store()
    for at in (store, loaded):
        await local_stores.add(at, "a.txt", "boots")
    assert await local_stores.texts(loaded, "boots") == ["boots"]
    endpoint.shortened = True
    for at in (store, loaded):
        failed = await local_stores.add(at, "b.txt", "boots")
        assert failed.status == "failed"
        assert failed.error is not None
        assert "63 dimensions, and those of this vector store have 64" in failed.error[1]
        with pytest.raises(BadGateway, match="63 dimensions"):
            await local_stores.texts(at, "parcel")
    new = await local_stores.store()
    assert (await local_stores.add(new, "b.txt", "boots")).status == "completed", "the others are not held up"
    assert await local_stores.texts(new, "boots") == ["boots"]
    replaced = await local_stores.add(store, "a.txt", "laces", chunking=Chunking(15, 0))
    assert replaced.status == "completed", "the only file that is found"
    assert await local_stores.texts(store, "laces") == ["laces"]


async def test_a_file_that_failed_for_the_embedders_sake_is_tried_again_at_the_next_start(
    tmp_path: Path, moody: Moody, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "RETRY_S", 0.01)
    async with LocalStores(tmp_path, moody).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "a.txt", "boots")
        assert (await local_stores.add(store, "bad.txt", b"boots\0")).status == "failed"
        await local_stores.database.run(lambda db: db.exec_driver_sql("UPDATE store_files SET model = 'former'"))
    endpoint.status = 401
    async with LocalStores(tmp_path, moody).open() as local_stores:
        failed = await local_stores.settled(store, "a.txt")
        assert failed.error == ("server_error", "the embeddings endpoint returned status 401")
    endpoint.status = 200
    async with LocalStores(tmp_path, moody).open() as local_stores:
        assert (await local_stores.settled(store, "a.txt")).status == "completed"
        assert await local_stores.texts(store, "boots") == ["boots"]
        refused = await local_stores.stores.get_file(PROJECT, store, "bad.txt")
        assert refused is not None
        assert refused.status == "failed", "that is the document's fault"


async def test_a_document_that_is_refused_is_not_found_any_more(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    refused = await local_stores.add(store, "a.txt", b"boots\0", chunking=Chunking(15, 0))
    assert refused.error is not None
    assert refused.error[0] == "invalid_file"
    assert await local_stores.texts(store, "boots") == []


async def test_a_file_that_waits_can_be_removed(local_stores: LocalStores, endpoint: Endpoint) -> None:
    store = await local_stores.store()
    endpoint.status = 503
    await begin(local_stores, store, "a.txt")
    await endpoint.seen(2)
    async with asyncio.timeout(240):
        await local_stores.stores.remove_file(PROJECT, store, "a.txt")
    endpoint.status = 200
    await local_stores.add(store, "b.txt", "parcel")
    assert await local_stores.texts(store, "boots parcel") == ["parcel"]


async def test_a_file_that_ends_the_embedder_again_and_again_fails(local_stores: LocalStores, moody: Moody) -> None:
    store = await local_stores.store()
    gone, away = EmbedderGone("went away"), Unavailable("not ready")
    moody.moods["a.txt"] = [gone, *[away] * 5, gone, *[away] * 5]
    assert (await local_stores.add(store, "a.txt", "boots")).status == "completed", "what passes does not count"
    moody.moods["b.txt"] = [gone] * indexing.ATTEMPTS
    failed = await local_stores.add(store, "b.txt", "boots")
    assert failed.error == ("server_error", f"went away; tried {indexing.ATTEMPTS} times")
    assert moody.moods["b.txt"] == []


async def test_a_file_that_ends_the_reader_again_and_again_is_at_fault_itself(
    local_stores: LocalStores, moody: Moody
) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    moody.moods["a.txt"] = [ReaderGone("it ended")] * indexing.ATTEMPTS
    failed = await local_stores.add(store, "a.txt", "boots", chunking=Chunking(15, 0))
    assert failed.error == ("invalid_file", f"it ended; tried {indexing.ATTEMPTS} times")
    assert await local_stores.texts(store, "boots") == []


@pytest.mark.slow
async def test_a_document_that_ends_every_reader_becomes_an_invalid_file(
    tmp_path: Path, local_stores: LocalStores, moody: Moody
) -> None:
    """A real one: reading it takes more memory than a reader may have."""
    store = await local_stores.store()
    await local_stores.add(store, "a.xlsx", make_xlsx({"a": [["thing"], ["boots"]]}))
    assert len(await local_stores.texts(store, "boots")) == 1
    failed = await local_stores.add(store, "a.xlsx", make_sparse_xlsx(), chunking=Chunking(15, 0))
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error[0], failed.error[1].rpartition(";")[2]) == (
        "invalid_file",
        f" tried {indexing.ATTEMPTS} times",
    )
    assert await local_stores.texts(store, "boots") == [], "what was found before is not what the file says now"
    assert (await local_stores.add(store, "b.txt", "parcel")).status == "completed"
    assert moody.starts == 1, "the embedder itself goes on"
    await local_stores.stores.close()
    again = LocalStores(tmp_path, moody)
    async with again.open():
        assert (await again.add(store, "c.txt", "laces")).status == "completed"  # after what waited before it
        assert await again.stores.get_file(PROJECT, store, "a.xlsx") == failed, "no start tries it again"


@contextmanager
def held_open(path: Path) -> Iterator[asyncio.Task[None]]:
    """A pipe at ``path``, whose reader waits for bytes in vain; the task ends once there is a reader."""
    os.mkfifo(path)
    ends: list[int] = []

    async def opened() -> None:
        while not ends:
            try:
                ends.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # nobody has it open to read
                await asyncio.sleep(0.01)

    task = asyncio.create_task(opened())
    try:
        yield task
    finally:
        task.cancel()
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("victim", ["embedder", "reader"])
async def test_a_file_whose_embedder_or_reader_is_killed_is_indexed_after_all(
    local_stores: LocalStores, moody: Moody, victim: str
) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "other.txt", "parcel")
    with held_open(local_stores.files / "a.txt") as being_read:
        await local_stores.stores.add_files(PROJECT, store, [NewStoreFile("a.txt", "a.txt")])
        async with asyncio.timeout(240):
            await being_read
        (local_stores.files / "text").write_text("boots")
        (local_stores.files / "text").replace(local_stores.files / "a.txt")
        assert moody.pid is not None
        embedder = psutil.Process(moody.pid)
        [reader] = embedder.children()
        (embedder if victim == "embedder" else reader).kill()
        settled = await local_stores.settled(store, "a.txt")
    assert (settled.status, settled.error) == ("completed", None)
    assert moody.starts == (2 if victim == "embedder" else 1)
    assert await local_stores.texts(store, "boots") == ["boots"]


async def test_others_go_before_a_file_that_meets_trouble(local_stores: LocalStores, moody: Moody) -> None:
    store = await local_stores.store()
    moody.moods["a.txt"] = [Unavailable("late") for _ in range(10_000)]
    await begin(local_stores, store, "a.txt")
    assert (await local_stores.add(store, "b.txt", "parcel")).status == "completed"
    waiting = await local_stores.stores.get_file(PROJECT, store, "a.txt")
    assert waiting is not None
    assert waiting.status == "in_progress"


async def test_a_full_disk_fails_no_file(local_stores: LocalStores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await local_stores.store()
    full = [DiskFull("no room")] * (indexing.ATTEMPTS + 2)
    whole = PassageFile.begin

    def cramped(self: PassageFile, generation: str) -> int:
        if full:
            raise full.pop()
        return whole(self, generation)

    monkeypatch.setattr(PassageFile, "begin", cramped)
    assert (await local_stores.add(store, "a.txt", "boots")).status == "completed"
    assert full == []


async def test_an_error_that_nobody_foresaw_fails_its_file_and_holds_up_no_other(
    local_stores: LocalStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await local_stores.store()
    whole = PassageFile.begin
    broken = [ValueError("never seen before")]

    def begin(self: PassageFile, generation: str) -> int:
        if broken:
            raise broken.pop()
        return whole(self, generation)

    monkeypatch.setattr(PassageFile, "begin", begin)
    failed = await local_stores.add(store, "a.txt", "boots")
    assert (failed.status, failed.error) == ("failed", ("server_error", "internal error (ValueError)"))
    assert (await local_stores.add(store, "b.txt", "parcel")).status == "completed"
