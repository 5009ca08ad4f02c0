"""The fake engine on a port of its own, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from loadtests.gateway.upstream import Connection, Decoder

REPORT = b'{"protocol":1,"names":["base"]}'


@dataclass
class Engine:
    """Where it listens, and its decoder."""

    port: int
    decoder: Decoder

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def listening(factory: type[asyncio.Protocol] | None = None) -> AsyncIterator[Engine]:
    """The fake engine, or another protocol in its place."""
    loop = asyncio.get_running_loop()
    decoder = Decoder(loop)
    server = await loop.create_server(factory or (lambda: Connection(decoder, REPORT)), "127.0.0.1", 0)
    async with server:
        yield Engine(server.sockets[0].getsockname()[1], decoder)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with listening() as fake:
        yield fake
