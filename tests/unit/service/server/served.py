"""The gateway's own server on a real socket, around any app, and a client that sends bytes as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service.config import Settings
from service.http.disconnect import DISCONNECT
from service.server.protocol import BoundedProtocol
from service.server.serve import uvicorn_config
from tests.unit.service.inference.fakes import until

WITHIN_S = 240.0
"""What is waited for comes by itself; a slow machine may take its time."""
PATIENT = {"header_timeout_s": WITHIN_S, "body_timeout_s": WITHIN_S, "keep_alive_s": WITHIN_S}
"""Nothing ends by its time unless a test says so, by shorter ones or by what it gives a connection's `check`."""
HEAD = b"GET /x HTTP/1.1\r\nhost: x\r\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> tuple[int, str]:
        """Status and code of an error, which must have OpenAI's shape."""
        error = orjson.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        return self.status, error["code"]


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """The next answer, of a known length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WITHIN_S)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), WITHIN_S)
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def closed(self) -> bytes:
        """What still comes until the server closes; a reset is a closing, too."""
        try:
            return await asyncio.wait_for(self.reader.read(), WITHIN_S)
        except ConnectionError:
            return b""


@dataclass
class Served:
    port: int
    server: uvicorn.Server
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> Answer:
        """The answer to bytes on a connection of their own."""
        client = await self.connect()
        answer = await client.ask(data)
        client.writer.close()
        return answer

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connection(self) -> BoundedProtocol:
        """The server's side of the only connection."""
        (only,) = self.server.server_state.connections
        assert isinstance(only, BoundedProtocol)
        return only


@asynccontextmanager
async def served(app: ASGIApp, **settings: Any) -> AsyncIterator[Served]:
    """A server as `hatrack serve` has it, with these settings."""
    given = Settings(**{"engine_device": "cpu", "port": 0, **PATIENT, **settings})
    server = uvicorn.Server(uvicorn_config(app, given, lifespan="off", timeout_graceful_shutdown=1))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    here = Served(server.servers[0].sockets[0].getsockname()[1], server)
    try:
        yield here
    finally:
        for client in here.clients:
            client.writer.close()
        server.should_exit = True
        await running


class Echo:
    """An app that reads the body and tells what it was asked; it can be held before it answers."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[str] = []
        self.left = 0
        self.read = 0
        """Bytes of bodies."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        if scope["path"] != "/unread":
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left += 1
                    return
                self.read += len(message["body"])
                more = message["more_body"]
        watch = asyncio.create_task(self._leaving(receive)) if scope["path"] == "/watched" else None
        if scope["path"] == "/noticed":
            scope["state"][DISCONNECT].subscribe(self._left)
        await self.go.wait()
        if watch is not None:
            watch.cancel()
        body = b"x" * 2**26 if scope["path"] == "/large" else scope["path"].encode()
        headers = [(b"content-length", str(len(body)).encode()), (b"x-request-id", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def has_read(self, count: int) -> None:
        """Wait until this many bytes of bodies were read."""
        await until(lambda: self.read == count)

    async def _leaving(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._left()

    def _left(self) -> None:
        self.left += 1
        self.go.set()
