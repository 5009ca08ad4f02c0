"""ASGI apps run in this process: their lifespan alone, or on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_S: Final = 75


@asynccontextmanager
async def lifespan_of(app: ASGIApp) -> AsyncIterator[None]:
    """Start the app, and stop it at the end. Raises RuntimeError where it does not start."""
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    running = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, events.get, answers.put))  # type: ignore[arg-type]
    await events.put({"type": "lifespan.startup"})
    started = await answers.get()
    if started["type"] != "lifespan.startup.complete":
        raise RuntimeError(f"the app did not start: {started.get('message', started['type'])}")
    try:
        yield
    finally:
        await events.put({"type": "lifespan.shutdown"})
        await running


def web_server(app: ASGIApp, **options: Any) -> uvicorn.Server:
    """A server whose connections stay open for longer than any client here keeps an idle one: on a busy machine a
    request would else meet the moment at which the server closes its connection."""
    return uvicorn.Server(uvicorn.Config(app, timeout_keep_alive=KEEP_ALIVE_S, **options))
