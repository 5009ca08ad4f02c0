"""The whole gateway over a real database and disk; engine, trainer and embeddings are small servers of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
from aiohttp import web
from fastapi import FastAPI
from starlette.types import ASGIApp

from service.agent.process import AgentProcess, agent_settings
from service.app import DataPathFirst, PeersFirst, create_app
from service.config import Settings
from service.cors import Cors
from service.engine.assemble import describe_base
from service.engine.config import EngineConfig
from service.engine.contract import PLUGIN_PROTOCOL, PLUGIN_ROUTE
from service.engine.identity import ensure_store_id, plugin_digest
from service.error_handlers import RequestIds
from service.fronts.gateway import NamesVersions
from service.inference.routes import InferenceApp
from service.openapi import build
from tests.support.conformance import Conformance
from tests.unit.service.knowledge.knowledge_app import vectors
from tests.unit.service.training.training_gateway import StandIn

ADMIN_KEY = "a-key-for-these-tests-0123456789"
AGENT_KEY = "a-secret-of-agent-and-gateway"
BASE = "tiny"
TOKENS = 12
READY_S = 60.0
_CONFORMANCE: dict[frozenset[str], Conformance] = {}
"""By the routes that a gateway has: its document takes two seconds to write, and is the same for all that have them."""


@dataclass
class InferenceEngine:
    """Speaks enough of vLLM's HTTP for the gateway; ``failure`` is what it says instead of an answer."""

    report: dict[str, Any]
    failure: tuple[int, dict[str, Any]] | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cancels_handlers: bool = False

    @asynccontextmanager
    async def on(self, socket: Path) -> AsyncIterator[None]:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get(PLUGIN_ROUTE, self._report)
        app.router.add_get("/v1/models", self._report)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=self.cancels_handlers)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _report(self, _request: web.Request) -> web.Response:
        return web.json_response(self.report)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text="vllm:generation_tokens_total 1.0\n")

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((request.path, body))
        if request.path == "/v1/completions" and "prompt_logprobs" in body:
            return web.json_response({"choices": [self._scored(n, body) for n, _ in enumerate(body["prompt"])]})
        if self.failure is not None:
            status, answer = self.failure
            return web.json_response(answer, status=status)
        if request.path == "/v1/embeddings":
            return web.json_response({"detail": "Not Found"}, status=404)  # the base makes none
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        message = {"role": "assistant", "content": "ahoy"}
        answer = {"id": "c1", "object": "chat.completion", "model": body["model"], "usage": usage}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        members: dict[str, Any] = {"/v1/responses": {"output": []}, "/v1/messages": {"content": []}}
        written = orjson.dumps(
            {**answer, **members.get(request.path, {"choices": [choice]})}
        )  # without spaces, as vLLM writes it
        return web.Response(body=written, content_type="application/json")

    def _scored(self, text: int, body: dict[str, Any]) -> dict[str, Any]:
        shift = 0.0 if body["model"] == BASE else -0.5
        positions = [{"5": {"logprob": -2.0 - 0.1 * text - 0.01 * token + shift}} for token in range(TOKENS)]
        return {"index": text, "prompt_logprobs": [None, *positions]}


class GatewayApp:
    """The gateway's app while it runs; ``http`` shows the admin key where a request brings no other."""

    def __init__(self, app: ASGIApp, settings: Settings, engine: InferenceEngine, trainer: StandIn) -> None:
        self.app = app
        self.settings = settings
        self.engine = engine
        self.trainer = trainer
        self.http: httpx.AsyncClient

    @property
    def _data_path_first(self) -> DataPathFirst:
        app = self.app.app if isinstance(self.app, Cors) else self.app
        return cast(DataPathFirst, app._rest if isinstance(app, PeersFirst) else app)

    @property
    def _inference(self) -> InferenceApp:
        return self._data_path_first._inference

    @property
    def api(self) -> FastAPI:
        """All but the data path."""
        rest = self._data_path_first._rest
        request_ids = rest.app if isinstance(rest, NamesVersions) else rest
        return cast(FastAPI, cast(RequestIds, request_ids).app)

    async def hold_to_the_document(self, answer: httpx.Response) -> None:
        """Fail where an answer is not what `/openapi.json` says of it."""
        routes = frozenset(str(getattr(route, "path", "")) for route in self.api.routes)
        if routes not in _CONFORMANCE:
            _CONFORMANCE[routes] = Conformance(build(self.api, self._inference.routes, ""))
        request = answer.request
        kind = answer.headers.get("content-type", "")
        body = await answer.aread()
        fault = _CONFORMANCE[routes].complaint(request.method, request.url.path, answer.status_code, kind, body)
        assert fault is None, fault

    async def key(self, *scopes: str, **more: Any) -> str:
        """A new key, made by the admin."""
        answer = await self.http.post("/v1/keys", json={"name": "test", "scopes": list(scopes), **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])


@asynccontextmanager
async def running(
    home: Path,
    base_dir: Path,
    *,
    make_engine: Callable[[dict[str, Any]], InferenceEngine] = InferenceEngine,
    through_agent: bool = False,
    **more: Any,
) -> AsyncIterator[GatewayApp]:
    """A gateway over ``home``, ready to answer; ``make_engine`` gets the report that its engine is to give.

    With ``through_agent`` a real agent stands between the two.
    """
    home.mkdir(parents=True, exist_ok=True)
    async with vectors() as embeddings:
        given = {"engine_device": "cpu", "embeddings_url": embeddings, "embeddings_model": "words", **more}
        own = {"home": home, "base_model": str(base_dir), "base_name": BASE, "admin_key": ADMIN_KEY, **given}
        engine_url = {"engine_url": f"unix:{home / 'e.sock'}"}
        if through_agent:
            own = {"agent_key": AGENT_KEY, **own, "engine_agent": f"unix:{home / 'a.sock'}"}
        settings = Settings(trainer_url=f"unix:{home / 't.sock'}", **own, **({} if through_agent else engine_url))
        engine, trainer = make_engine(engine_report(settings)), StandIn(answer=_empty_trainer)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(engine.on(home / "e.sock"))
            await stack.enter_async_context(trainer.on(home / "t.sock"))
            if through_agent:
                agent = Settings(**own | engine_url | {"engine_agent": ""})
                await stack.enter_async_context(agent_on(agent, home / "a.sock"))
            gateway = GatewayApp(create_app(settings), settings, engine, trainer)
            async with lifespan(gateway.app):
                transport = httpx.ASGITransport(app=gateway.app)
                headers = {"authorization": f"Bearer {ADMIN_KEY}"}
                hooks = {"response": [gateway.hold_to_the_document]}
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://test", headers=headers, event_hooks=hooks
                ) as http:
                    gateway.http = http
                    async with asyncio.timeout(READY_S):
                        while (await http.get("/readyz")).status_code != 200:  # noqa: ASYNC110 (a state over HTTP)
                            await asyncio.sleep(0.02)
                    yield gateway


@asynccontextmanager
async def agent_on(settings: Settings, socket: Path, name: str | None = None) -> AsyncIterator[AgentProcess]:
    """A real agent that listens on ``socket``; ``name`` as with `hatrack agent --name`."""
    own = agent_settings(settings.model_copy(update={"drain_s": min(20.0, settings.drain_s)}), name)
    agent, listens, stop = AgentProcess(own, name), asyncio.Event(), asyncio.Event()
    work = asyncio.create_task(
        agent.run(host="", port=0, uds=str(socket), started=lambda address: listens.set(), stop=stop)
    )
    waiting = asyncio.create_task(listens.wait())
    await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        waiting.cancel()
        await work
    try:
        yield agent
    finally:
        stop.set()
        await work
        socket.unlink(missing_ok=True)


async def _empty_trainer(request: web.Request) -> web.Response:
    """What a trainer answers that was never asked for anything, and takes nothing."""
    await request.read()
    if request.path == "/health":
        return web.json_response({"status": "ok", "paused_seconds": 0.0})
    if request.method == "GET" and request.path in ("/v1/fine_tuning/jobs", "/v1/evaluations", "/v1/reviews"):
        return web.json_response({"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None})
    checked = request.path == "/v1/fine_tuning/data_check"
    status, code = (400, "invalid_value") if checked else (404, "not_found")
    error = {"message": "there is none", "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


def engine_report(settings: Settings) -> dict[str, Any]:
    """What the plugin of an engine that fits the settings says."""
    config = EngineConfig.from_settings(settings)
    config.store.mkdir(parents=True, exist_ok=True)
    return {
        "protocol": PLUGIN_PROTOCOL,
        "plugin": plugin_digest(),
        "boot": "boot-1",
        "signature": None,
        "base": describe_base(settings).fingerprint.model_dump(),
        "vllm": "0.32.0+cpu",
        "names": [config.base_name],
        "store": str(config.store),
        "store_id": ensure_store_id(config.store),
        "slots": config.slots,
        "max_rank": config.max_rank,
        "context": 2048,
        "asked": 1,
        "loaded": [],
    }


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Start and stop an app as a server does."""
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    running_app = asyncio.ensure_future(cast(Callable[..., Any], app)({"type": "lifespan"}, received.get, sent.put))
    try:
        await received.put({"type": "lifespan.startup"})
        started = await sent.get()
        assert started["type"] == "lifespan.startup.complete", started
        yield
        await received.put({"type": "lifespan.shutdown"})
        stopped = await sent.get()
        assert stopped["type"] == "lifespan.shutdown.complete", stopped
    finally:
        running_app.cancel()
        await asyncio.gather(running_app, return_exceptions=True)
