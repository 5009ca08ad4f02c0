"""A server that sends what a test says, byte for byte, and the data path's HTTP client for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from service.http.http1 import Http1Client
from tests.unit.service.inference.fakes import until

Runner = Callable[[Coroutine[Any, Any, None]], None]
Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"


class Unreachable(Exception):
    """No connection."""


class Cut(Exception):
    """No whole response; its argument is the reason."""


@dataclass
class Server:
    """What a server has read, and how many connections it has had and has."""

    client: Http1Client
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0


def client_of(url: str, socket: str | None = None, keep_alive_s: float = 60.0) -> Http1Client:
    return Http1Client(
        url, socket, connect_s=30, keep_alive_s=keep_alive_s, unreachable=Unreachable, cut=Cut, headers={"x-key": "k"}
    )


@asynccontextmanager
async def server(folder: Path, *acts: Act, keep_alive_s: float = 60.0) -> AsyncIterator[Server]:
    """Answers the requests in their order, on whatever connection they come; the last act answers all further ones."""
    path = str(folder / "s.sock")
    state = Server(client_of("http://engine/base/", path, keep_alive_s))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        state.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                state.requests.append(head + await reader.readexactly(int(length.split(b":")[1])))
                await acts[min(len(state.requests), len(acts)) - 1](reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed
        finally:
            state.open -= 1
            writer.close()

    listening = await asyncio.start_unix_server(serve, path)
    try:
        yield state
        await state.client.close()
        await until(lambda: state.open == 0)
    finally:
        listening.close()
        await state.client.close()


def says(*parts: bytes, close: bool = False, abort: bool = False) -> Act:
    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if abort:
            writer.transport.abort()
        if close:
            writer.close()

    return act


async def fetch(client: Http1Client, body: bytes = b"{}") -> tuple[int, bytes]:
    response = await client.request("POST", "/v1", body, {"content-type": "application/json"})
    try:
        return response.status, await response.read()
    finally:
        response.close()


async def fetch_passed(client: Http1Client, body: bytes = b"{}") -> tuple[int, bytes]:
    """As `fetch`, with the body passed on as it arrives; every third piece is the last that is taken at once."""
    response = await client.request("POST", "/v1", body, {"content-type": "application/json"})
    parts: list[bytes] = []

    def take(data: bytes) -> bool:
        parts.append(data)
        return len(parts) % 3 != 0

    try:
        while not await response.pass_to(take):
            assert len(parts) % 3 == 0
        return response.status, b"".join(parts)
    finally:
        response.close()


Fetch = Callable[[Http1Client], Awaitable[tuple[int, bytes]]]
on_both_ways = pytest.mark.parametrize("fetch", [fetch, fetch_passed], ids=["read", "passed on"])
"""Make a test of ``fetch`` one of both ways to read a body."""


def on_both_loops(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path, Runner], None]:
    """Make a test of a coroutine function, run on asyncio's event loop and on the one that the server runs on."""

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def on_loop(tmp_path: Path, run: Runner) -> None:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: run(test(tmp_path))).result()

    return on_loop
