"""The whole gateway and a trainer on real sockets, an engine of bytes behind them: no model, and no GPU."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import httpx
from aiohttp import web
from starlette.types import ASGIApp

from adapters.base import Fingerprint
from service.app import create_app
from service.config import Settings
from service.engine.assemble import describe_base
from service.engine.config import EngineConfig
from service.engine.contract import PLUGIN_ROUTE
from tests.support.adapters import make_base
from tests.support.asgi import web_server
from tests.support.gateway import held_port
from tests.support.system import plain_environment
from tests.unit.service.engine.fake import FakeEngine
from trainer.app import Trainer
from trainer.app import create_app as create_trainer_app
from trainer.config import Settings as TrainerSettings
from trainer.finetune.capacity import BaseModelInfo
from trainer.installation import Installation

UNIT: Final = Path(__file__).parent.parent / "unit" / "trainer"
ADMIN_KEY: Final = "a-key-for-these-tests-0123456789"
BASE: Final = "tiny"
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
USAGE: Final = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
WAIT_S: Final = 120.0
SHORT: Final = "/tmp"


class ContractEngine(FakeEngine):
    """Also answers requests: each under its model's name, with one token. An adapter moves the log-probabilities."""

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        for path, answer in self._answers().items():
            app.router.add_route("*", path, answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    def _answers(self) -> dict[str, Any]:
        return {
            PLUGIN_ROUTE: self._report,
            "/v1/models": self._models,
            "/metrics": self._metrics,
            "/v1/completions": self._complete,
            "/v1/chat/completions": self._chat,
            "/tokenize": self._tokens,
            "/detokenize": self._text,
        }

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        moved = 0.5 if DIGEST.fullmatch(body["model"]) else 0.0

        def row(prompt: str) -> list[dict[str, Any] | None]:
            return [None, *({"5": {"logprob": -1.0 - moved - 0.01 * (at % 12)}} for at in range(len(prompt) // 4))]

        choices = [
            {"index": index, "text": "a", "finish_reason": "length"}
            | ({"prompt_logprobs": row(prompt)} if "prompt_logprobs" in body else {})
            for index, prompt in enumerate(prompts)
        ]
        return web.json_response(
            {"id": "c", "object": "text_completion", "model": body["model"], "choices": choices, "usage": USAGE}
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            message = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
            return web.json_response(answer | {"choices": [message], "usage": USAGE})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chunk = answer | {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if body["messages"][-1]["content"] != "break":
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _tokens(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": [1, 2], "count": 2, "max_model_len": 2048})

    async def _text(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": "a"})


async def _embed(request: web.Request) -> web.Response:
    inputs = (await request.json())["input"]
    data = [{"object": "embedding", "index": at, "embedding": [1.0, float(at)]} for at in range(len(inputs))]
    return web.json_response({"object": "list", "data": data, "model": "e", "usage": USAGE})


@asynccontextmanager
async def _embeddings() -> AsyncIterator[str]:
    """The URL of an embedding model that knows two dimensions."""
    app = web.Application()
    app.router.add_post("/v1/embeddings", _embed)
    runner = web.AppRunner(app)
    await runner.setup()
    with held_port() as held:
        await web.SockSite(runner, held).start()
        try:
            yield f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        finally:
            await runner.cleanup()


@dataclass(frozen=True)
class ContractGateway:
    """What is under test."""

    app: ASGIApp
    trainer_app: ASGIApp
    http: httpx.AsyncClient
    home: Path
    scratch: Path


@asynccontextmanager
async def running(scratch: Path) -> AsyncIterator[ContractGateway]:
    """All of it, started and ready; everything that it writes is under `scratch`, but for its home."""
    base_dir = make_base(
        scratch / BASE, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512
    )
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hc-", dir=SHORT)))
        # cancel waits for the worker for longer than it does for a client: on a busy machine one needs more to start
        stack.enter_context(patch("trainer.runs.service.SETTLE_S", WAIT_S))
        # a first search starts the embedder's process, for which such a machine needs more than a caller is given
        stack.enter_context(patch("service.knowledge.service.SEARCH_TIMEOUT_S", WAIT_S))
        stack.enter_context(patch.dict(os.environ, plain_environment(), clear=True))
        held = stack.enter_context(held_port())
        embeddings = await stack.enter_async_context(_embeddings())
        settings = _settings(home, base_dir, held.getsockname()[1], embeddings)
        engine = ContractEngine.of(
            EngineConfig.from_settings(settings), **_identity(describe_base(settings).fingerprint)
        )
        engine.socket = home / "engine.sock"
        app, trainer_app = create_app(settings), _trainer(home, base_dir, settings)
        (home / "trainer").mkdir(exist_ok=True)
        stack.push_async_callback(engine.stop)
        await engine.start()
        await stack.enter_async_context(_served(trainer_app, _unix(home / "trainer" / "trainer.sock")))
        await stack.enter_async_context(_served(app, held))
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=WAIT_S)
        await _until_ready(await stack.enter_async_context(http))
        yield ContractGateway(app, trainer_app, http, home, scratch)


def _unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


def _settings(home: Path, base_dir: Path, port: int, embeddings: str) -> Settings:
    return Settings(
        home=home,
        port=port,
        base_model=str(base_dir),
        admin_key=ADMIN_KEY,  # type: ignore[arg-type]
        engine_device="cpu",
        engine_url=f"unix:{home / 'engine.sock'}",
        engine_context=512,
        trainer="off",
        trainer_url=f"unix:{home / 'trainer' / 'trainer.sock'}",
        samples=False,
        embeddings_url=embeddings,
        embeddings_model="e",
    )


def _identity(base: Fingerprint) -> dict[str, Any]:
    return {"base": base.model_dump(), "vllm": base.engine_version}


def _trainer(home: Path, base_dir: Path, settings: Settings) -> ASGIApp:
    """A trainer whose workers keep the protocol of their folders and train nothing."""
    installation = Installation(
        home=home,
        gateway=f"http://127.0.0.1:{settings.port}",
        base=base_dir,
        base_name=BASE,
        max_rank=settings.engine_max_rank,
        context=512,
    )
    chosen = TrainerSettings(device="cpu", stop_s=120.0)

    def work(folder: Path, stage: str) -> list[str]:
        return [sys.executable, str(UNIT / "finetune" / "stand_in.py"), str(folder), "--stage", stage]

    def evaluate(folder: Path, _stage: str) -> list[str]:
        return [sys.executable, str(UNIT / "evaluate" / "evaluations" / "stand_in.py"), str(folder)]

    return create_trainer_app(Trainer.build(chosen, installation, BaseModelInfo.read(base_dir), work, evaluate), chosen)


@asynccontextmanager
async def _served(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    server = web_server(
        app, log_config=None, server_header=False, ws="none", lifespan="on", timeout_graceful_shutdown=1
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with asyncio.timeout(WAIT_S):
        while not server.started:
            if serving.done():
                raise RuntimeError("the server did not start") from serving.exception()
            await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def _until_ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await http.get("/readyz")).status_code != 200:  # noqa: ASYNC110 (it is asked over HTTP)
            await asyncio.sleep(0.02)
