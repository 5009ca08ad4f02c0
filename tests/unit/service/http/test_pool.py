"""A pool that is closed while others use it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from service.http.pool import ConnectionPool


async def here(_: web.Request) -> web.Response:
    return web.Response(text="here")


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
