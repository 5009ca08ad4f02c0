"""A way to the tests' PostgreSQL server on which answers are lost: by a cut, by an outage, or by silence."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from adapters.database import database, resync
from adapters.database.postgresql import PostgresServer
from tests.support.postgresql import TEMPLATE, TestServer

SOCKET: Final = ".s.PGSQL.5432"


class Proxy:
    """A Unix socket in a folder of its own, before the server's.

    Attributes:
        lose_commits: So many of the next answers to COMMIT are lost: the server has saved, and the connection is cut.
        lose_after: The answer to the next COMMIT behind this statement is lost so, too.
        is_away_after_loss: The server is away from then on.
        cut_after: The next COMMIT behind this statement does not reach the server: nothing is saved.
        away_after: When the answer to a COMMIT behind this statement has arrived, the server is away; None: never.
        losses: How often either has happened.
    """

    def __init__(self, server: TestServer, folder: Path) -> None:
        self._server = server
        self._socket = str(server.folder / SOCKET)
        self.folder = folder
        self.lose_commits = 0
        self.is_away_after_loss = False
        self.cut_after: bytes | None = None
        self.lose_after: bytes | None = None
        self.away_after: bytes | None = None
        self.losses = 0
        self._is_away = False
        self._connections: dict[asyncio.StreamWriter, asyncio.Event] = {}
        self._ends = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, database: str) -> str:
        """The database's address through this."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def go_away(self) -> None:
        """Cut all connections, and accept none until ``come_back``."""
        self._is_away = True
        for writer in tuple(self._connections):
            writer.transport.abort()

    def come_back(self) -> None:
        """Accept connections again."""
        self._is_away = False

    def freeze(self) -> None:
        """The connections of now stay open for ever, and nothing passes on them. Later ones work, as if another server
        were at the address: the sessions of the first have ended."""
        for frozen in self._connections.values():
            frozen.set()
        self._server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'hatrack' AND pid <> pg_backend_pid()"
        )

    async def end(self) -> None:
        """Cut all connections, frozen ones too."""
        self.go_away()
        self._ends.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_away:
            writer.transport.abort()
            return
        from_server, to_server = await asyncio.open_unix_connection(self._socket)
        frozen = self._connections[writer] = asyncio.Event()
        saving, leaving = asyncio.Event(), asyncio.Event()

        async def ask() -> None:
            seen = b""
            while data := await reader.read(65536):
                seen += data
                if b"COMMIT" in data:
                    if self.away_after is not None and self.away_after in seen:
                        self.away_after = None
                        leaving.set()
                    elif self.cut_after is not None and self.cut_after in seen:
                        self.cut_after = None
                        return
                    elif self.lose_after is not None and self.lose_after in seen:
                        self.lose_after = None
                        saving.set()
                    elif self.lose_commits:
                        self.lose_commits -= 1
                        saving.set()
                    seen = b""
                if frozen.is_set():
                    await asyncio.Event().wait()
                to_server.write(data)

        async def answer() -> None:
            while data := await from_server.read(65536):
                if saving.is_set():  # it answers COMMIT when it has saved
                    self.losses += 1
                    if self.is_away_after_loss:
                        self.go_away()
                    return
                if frozen.is_set():
                    await asyncio.Event().wait()
                writer.write(data)
                if leaving.is_set():
                    self._is_away = True
                    await asyncio.sleep(0.05)  # the answer is read before its connection is cut
                    self.losses += 1
                    self.go_away()

        tasks: list[asyncio.Task[object]] = [asyncio.create_task(work) for work in (ask(), answer(), self._ends.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del self._connections[writer]
            for stream in (writer, to_server):
                with suppress(OSError):
                    stream.transport.abort()


@asynccontextmanager
async def proxy_before(server: TestServer) -> AsyncIterator[Proxy]:
    """A proxy before the server; as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(dir=server.folder.parent))
    proxy = Proxy(server, folder)
    listening = await asyncio.start_unix_server(proxy.accept, folder / SOCKET)
    try:
        yield proxy
    finally:
        listening.close()
        await proxy.end()
        shutil.rmtree(folder)


@asynccontextmanager
async def databases_behind_proxy(server: TestServer) -> AsyncIterator[Proxy]:
    """Every database that is made in the context is one of the server's behind a proxy, and not a file."""
    name = server.create(TEMPLATE)

    def backend_for(path: Path, _url: str | None, schema: str, _state: Sequence[str] = ()) -> PostgresServer:
        return PostgresServer(proxy.url(name), schema, path.parent)

    async with proxy_before(server) as proxy:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "backend_for", backend_for)
            patch.setattr(resync, "RETRY_S", 0.1)
            yield proxy
    server.drop(name)
