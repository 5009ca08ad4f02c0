"""Every way in which a peer fails, as aiohttp raises it in truth, becomes the error that stands for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from service.http.connection_errors import ConnectionErrors

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Named(Exception):
    """Raised in place of aiohttp's; its argument says which of the kinds it is."""


def errors(*, timeout: bool = False, misconfigured: bool = False) -> ConnectionErrors:
    return ConnectionErrors(
        unreachable=lambda _: Named("unreachable"),
        cut=lambda _: Named("cut"),
        timeout=(lambda _: Named("timeout")) if timeout else None,
        misconfigured=(lambda _: Named("misconfigured")) if misconfigured else None,
    )


@asynccontextmanager
async def peer(handler: Handler) -> AsyncIterator[str]:
    """The URL of a server that does as ``handler`` says with each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def ask(url: str, mapping: ConnectionErrors, **options: float) -> bytes:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(**options)) as session:
        with mapping:
            async with session.get(url) as response:
                return await response.read()


async def test_nobody_listens() -> None:
    with pytest.raises(Named, match="unreachable") as caught:
        await ask("http://127.0.0.1:9/", errors(timeout=True))
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)


async def test_a_url_that_is_none() -> None:
    with pytest.raises(Named, match="misconfigured"):
        await ask("http://", errors(misconfigured=True))
    with pytest.raises(Named, match="unreachable"):
        await ask("http://", errors())


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"no http\r\n\r\n"])
async def test_the_answer_does_not_come_whole(sent: bytes) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()

    async with peer(cut) as url:
        with pytest.raises(Named, match="cut"):
            await ask(url, errors(timeout=True))


async def test_an_answer_that_does_not_come_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(silent) as url:
        with pytest.raises(Named, match="timeout"):
            await ask(url, errors(timeout=True), total=0.2)
        with pytest.raises(TimeoutError):
            await ask(url, errors(), total=0.2)


async def test_a_connection_that_does_not_come_about_in_time() -> None:
    late = aiohttp.ConnectionTimeoutError("late")
    for mapping, kind in ((errors(timeout=True), "timeout"), (errors(), "unreachable")):
        with pytest.raises(Named, match=kind), mapping:
            raise late


@pytest.mark.parametrize("error", [ValueError("ours"), asyncio.CancelledError()])
async def test_what_is_not_aiohttps_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), errors(timeout=True):
        raise error
