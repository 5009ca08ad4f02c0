"""A server that answers as an engine with our plugin does, on a Unix socket; what it says is for a test to set."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from adapters.base import Fingerprint
from service.config import Settings
from service.engine.config import EngineConfig
from service.engine.contract import PLUGIN_PROTOCOL, PLUGIN_ROUTE
from service.engine.identity import ensure_store_id, plugin_digest

BASE = Fingerprint(
    weights="w" * 16,
    config="c" * 16,
    tokenizer="t" * 16,
    template="p" * 16,
    dtype="bfloat16",
    quantization="none",
    engine_version="0.32.0",
)


def config_for(home: Path, **settings: Any) -> EngineConfig:
    """The engine of a home: often asked for a sign of life, and given as long for one as a busy machine may need."""
    given = {"engine_device": "cpu", "engine_canary_s": 0.3, "engine_stall_s": 240, "base_name": "base", **settings}
    return EngineConfig.from_settings(Settings(home=home, base_model=str(home), **given))


@dataclass
class FakeEngine:
    """What it reports, whether its numbers are numbers, and what it was asked."""

    socket: Path
    report: dict[str, Any]
    logprob: float | None = -1.0
    key: str | None = None
    asked: list[str] = field(default_factory=list)
    answers_after_s: float = 0.0
    _runner: web.AppRunner | None = None

    @classmethod
    def of(cls, config: EngineConfig, **report: Any) -> FakeEngine:
        """One that fits the configuration, but for what is given."""
        config.directory.mkdir(parents=True, exist_ok=True)
        fitting = {
            "protocol": PLUGIN_PROTOCOL,
            "plugin": plugin_digest(),
            "boot": "boot-1",
            "signature": None,
            "base": BASE.model_dump(),
            "vllm": "0.32.0+cpu",
            "names": [config.base_name],
            "store": str(config.store),
            "store_id": ensure_store_id(config.store),
            "slots": config.slots,
            "max_rank": config.max_rank,
            "context": 2048,
            "asked": 1,
        }
        return cls(config.socket, fitting | report)

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get(PLUGIN_ROUTE, self._report)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(
            app, handler_cancellation=True
        )  # as the engine does, it gives up what nobody waits for
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.socket.unlink(missing_ok=True)

    async def _report(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.json_response(self.report)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": []}, status=self._status(request))

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text="vllm:generation_tokens_total 1.0\n")

    async def _complete(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.answers_after_s)
        position = {"5": {"logprob": self.logprob}}
        answer = {"choices": [{"index": 0, "prompt_logprobs": [None, position, position]}]}
        return web.json_response(answer, status=self._status(request))

    def _status(self, request: web.Request) -> int:
        self.asked.append(request.path)
        return 200 if self.key in (None, request.headers.get("authorization", "").removeprefix("Bearer ")) else 401
