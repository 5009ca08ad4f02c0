"""A pool that is closed while others use it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from service.http.pool import ConnectionPool


async def here(_: web.Request) -> web.Response:
    return web.Response(text="here")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_request_whose_connection_is_lost_is_not_sent_again(method: str) -> None:
    """It may have been carried out, and a second DELETE is answered with 404."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b""):  # aiohttp repeats on a kept connection
            came.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[0])
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    pool = ConnectionPool(None, connect_s=5.0, keep_alive_s=30.0)
    async with pool.session.get(url) as answer:
        await answer.read()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await pool.session.request(method, url)
    assert came == [b"GET", method.encode()]
    await pool.close()
    server.close()


async def test_what_is_opened_while_the_pool_is_closed_stays(tmp_path: Path) -> None:
    app = web.Application()
    app.router.add_get("/", here)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    pool = ConnectionPool(str(tmp_path / "s"), connect_s=5.0, keep_alive_s=30.0)
    async with pool.session.get("http://here/") as answer:
        await answer.read()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    opened = pool.session
    await closing
    assert pool.session is opened
    assert not opened.closed
    await pool.close()
    await runner.cleanup()
