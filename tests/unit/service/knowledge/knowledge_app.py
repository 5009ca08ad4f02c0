"""Vector stores and their routes over a real database, without an engine; vectors come from a small HTTP endpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from aiohttp import web
from fastapi import FastAPI

from service.config import Settings
from service.error_handlers import RequestIds
from service.http.schema import add_routes
from service.knowledge.routes import router
from service.knowledge.service import Knowledge
from tests.unit.service.files.files_app import ADMIN_KEY, FilesApp

WIDTH = 64


async def embeddings(request: web.Request) -> web.Response:
    """OpenAI's endpoint: a text is the words in it."""
    texts = (await request.json())["input"]
    return web.json_response(
        {"object": "list", "data": [{"index": n, "embedding": vector(text)} for n, text in enumerate(texts)]}
    )


def vector(text: str) -> list[float]:
    found = [0.01] * WIDTH
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        found[hashlib.sha256(word.encode()).digest()[0] % WIDTH] += 1.0
    return found


class KnowledgeApp(FilesApp):
    """Files and stores, with clients of their routes."""

    def __init__(self, home: Path, url: str, **settings: Any) -> None:
        super().__init__(home)
        base = home / "base"
        base.mkdir(exist_ok=True)
        given = {"embeddings_url": url, "embeddings_model": "words", "engine_device": "cpu", **settings}
        self.knowledge = Knowledge.from_settings(
            Settings(home=home, base_model=str(base), **given), self.database, self.files
        )

    def app(self) -> FastAPI:
        app = super().app()
        app.state.knowledge = self.knowledge
        add_routes(app, router)
        return app

    @asynccontextmanager
    async def open(self) -> AsyncIterator[KnowledgeApp]:
        async with self.run():
            await self.knowledge.open()
            try:
                yield self
            finally:
                await self.knowledge.close()

    def client(self, key: str = ADMIN_KEY) -> openai.AsyncOpenAI:
        """The official client."""
        transport = httpx.ASGITransport(app=RequestIds(self.app()))
        http = httpx.AsyncClient(transport=transport, base_url="http://test")
        return openai.AsyncOpenAI(api_key=key, base_url="http://test/v1", http_client=http, max_retries=0)

    async def text(self, name: str, text: str, key: str | None = None) -> str:
        """The id of a new document."""
        return await self.made(text.encode(), "assistants", name=name, key=key)


@asynccontextmanager
async def vectors() -> AsyncIterator[str]:
    """The endpoint's URL."""
    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def detail(error: openai.APIStatusError) -> tuple[int, Any, Any]:
    """Status, code and param of a refusal."""
    return error.status_code, error.code, error.param
