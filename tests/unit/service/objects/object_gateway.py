"""A whole gateway whose content is in a bucket, before an engine that reads the adapters' folders as ours does."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from adapters.base import BaseDescription
from adapters.store import CONFIG_FILE, WEIGHTS_FILE
from service.objects.cache import Copies
from service.objects.client import ObjectStore
from tests.support.adapters import AdapterFiles, make_adapter
from tests.unit.service.gateway_app import BASE, GatewayApp, InferenceEngine, running

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)


@dataclass
class ReadingEngine(InferenceEngine):
    """Answers for a digest only while its files are in the store's folder, and knows then which it has loaded."""

    served: list[str] = field(default_factory=list)

    async def _answer(self, request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        folder = Path(self.report["store"]) / model
        if model != BASE and not all((folder / name).is_file() for name in ADAPTER_FILES):
            error = {"message": f"no such model: {model}", "type": "NotFoundError", "code": 404}
            return web.json_response({"error": error}, status=404)
        self.served.append(model)
        return await super()._answer(request)


class ObjectGateway:
    """The gateway, its bucket, and what tests say to them."""

    def __init__(self, gateway: GatewayApp, engine: ReadingEngine, objects: ObjectStore, scratch: Path) -> None:
        self.gateway = gateway
        self.engine = engine
        self.objects = objects
        self.http: httpx.AsyncClient = gateway.http
        self.home = gateway.settings.home
        self._scratch = scratch

    @property
    def copies(self) -> Copies:
        copies = self.gateway._inference.pipeline._dispatch._copies
        assert copies is not None
        return copies

    @property
    def file_copies(self) -> Copies:
        (copies,) = (kind for kind in self.copies.cache.kinds if kind is not self.copies)
        return copies

    def adapter(self, base: BaseDescription, name: str, **given: Any) -> AdapterFiles:
        return make_adapter(self._scratch / f"{name}-{os.urandom(4).hex()}", base, **given)

    async def push(self, name: str, files: AdapterFiles) -> httpx.Response:
        parts = {"config": ("adapter_config.json", files.config), "weights": ("w.safetensors", files.weights)}
        return await self.http.post("/v1/adapters", data={"name": name}, files=parts, timeout=60)

    async def pushed(self, name: str, files: AdapterFiles) -> str:
        """The digest of a version that was pushed."""
        answer = await self.push(name, files)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["digest"])

    async def chat(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return await self.http.post("/v1/chat/completions", json=body, timeout=60)

    async def empty_cache(self, *, forgotten: bool = True) -> None:
        """Remove all local copies that nobody holds, as the bound would; ``forgotten``: by the engine, too."""
        copies, cache = self.copies, self.copies.cache
        kept, bound = copies.kept, cache.max_bytes
        cache.max_bytes = 0
        if forgotten:
            copies.kept = frozenset
        await cache.trim()
        copies.kept, cache.max_bytes, cache._away_until = kept, bound, 0

    async def look(self) -> None:
        """Have the gateway ask the engine what it has loaded."""
        queue = self.gateway._inference.pipeline._dispatch._admission_queue
        assert queue is not None
        assert queue._residency is not None
        await queue._residency.poll()

    def local(self) -> set[str]:
        """The adapters in the local store."""
        return {path.name for path in self.gateway.settings.store_dir.iterdir() if len(path.name) == 64}

    def names(self, folder: str = "adapters") -> set[str]:
        """The objects below a folder."""
        return {each.name for each in self.objects.list(folder)}


@asynccontextmanager
async def open_gateway(home: Path, base_dir: Path, url: str, **settings: Any) -> AsyncIterator[ObjectGateway]:
    """Run a gateway over ``home`` and the store at ``url``, which the environment must give access to."""
    engines: list[ReadingEngine] = []

    def make_engine(report: dict[str, Any]) -> ReadingEngine:
        engines.append(ReadingEngine(report))
        return engines[0]

    async with running(home, base_dir, make_engine=make_engine, store_url=url, **settings) as gateway:
        yield ObjectGateway(gateway, engines[0], ObjectStore(url, allow_http=True), home.parent)
