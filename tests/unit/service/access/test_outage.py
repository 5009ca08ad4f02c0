"""While the database server is away, keys are still known, what needs the database is 503, and usage is kept."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from service.database import Database
from service.errors import Unavailable
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.record import Record
from service.usage.account import UsageAccount
from service.usage.records import usage
from tests.support.postgresql import TEMPLATE, TestServer
from tests.unit.service.access.clock import caller
from tests.unit.service.access.keys_app import KeysApp


class Outage:
    """Keys in a database of the server, which can be closed to all."""

    def __init__(self, keys_app: KeysApp, server: TestServer, name: str) -> None:
        self.keys_app, self._server, self._name = keys_app, server, name

    def begin(self) -> None:
        self._server.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        self._server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'"  # noqa: S608
        )

    def end(self) -> None:
        self._server.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")


@pytest.fixture
async def outage(postgresql: TestServer, tmp_path: Path) -> AsyncIterator[Outage]:
    name = postgresql.create(TEMPLATE)
    async with KeysApp(tmp_path, url=postgresql.url(name)).run() as keys_app:
        yield Outage(keys_app, postgresql, name)
    postgresql.drop(name)


async def test_a_key_is_known_and_a_change_is_503_in_the_apis_shape(outage: Outage) -> None:
    keys_app = outage.keys_app
    key = (await keys_app.make())["key"]
    outage.begin()
    refused: list[httpx.Response] = [
        await keys_app.http.post("/v1/keys", json={"name": "late"}),
        await keys_app.http.get("/v1/keys"),
    ]
    for answer in refused:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("server_error", "unavailable", None)
        assert error["message"] == "the metadata database cannot be reached now; try again"
    assert (await keys_app.get("/who", key)).status_code == 200
    outage.end()
    assert (await keys_app.make("late"))["name"] == "late"


async def test_usage_is_kept_and_written_when_the_server_is_back(outage: Outage) -> None:
    database = outage.keys_app.database
    account = UsageAccount(database, flush_s=3600)
    outage.begin()
    target = Target(label="smol", engine_model="smol")
    account(Record("r", "/v1/x", caller("key_a", "default"), target, usage=TokenUsage(10, 5)))
    with pytest.raises(Unavailable):
        await account.flush()
    outage.end()
    await account.flush()
    assert await database.run(lambda db: db.scalar(sa.select(usage.c.requests))) == 1


class CutInCommit:
    """A way to the server that is cut when it is told to save: the server has saved, and its answer is lost."""

    def __init__(self, server: TestServer, folder: Path) -> None:
        self._socket = str(server.folder / ".s.PGSQL.5432")
        self.folder = folder
        self.cuts = 0
        self.armed = False

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, self.folder / ".s.PGSQL.5432")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._socket)
        saving = asyncio.Event()

        async def ask() -> None:
            while data := await reader.read(65536):
                if self.armed and b"COMMIT" in data:
                    self.armed = False
                    saving.set()
                to_server.write(data)

        async def answer() -> None:
            while data := await from_server.read(65536):
                if saving.is_set():  # it answers COMMIT when it has saved
                    self.cuts += 1
                    return
                writer.write(data)

        tasks = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for stream in (writer, to_server):
            with suppress(OSError):
                stream.close()


async def test_usage_whose_saving_was_cut_off_counts_once(postgresql: TestServer, tmp_path: Path) -> None:
    name = postgresql.create(TEMPLATE)
    way = CutInCommit(postgresql, Path(tempfile.mkdtemp(dir=postgresql.folder.parent)))
    listening = await way.listen()
    database = Database(tmp_path / "hatrack.db", f"postgresql://postgres@/{name}?host={way.folder}")
    try:
        await database.open()
        account = UsageAccount(database, flush_s=3600)
        target = Target(label="smol", engine_model="smol")
        for _ in range(2):
            account(Record("r", "/v1/x", caller("key_a", "default"), target, usage=TokenUsage(10, 5)))
            way.armed = True
            with pytest.raises(Unavailable):
                await account.flush()
        assert way.cuts == 2
        await account.flush()
        chosen = sa.select(usage.c.requests, usage.c.prompt_tokens)
        assert await database.run(lambda db: [tuple(row) for row in db.execute(chosen)]) == [(2, 20)]
        await database.close()
    finally:
        listening.close()
        shutil.rmtree(way.folder)
        postgresql.drop(name)
