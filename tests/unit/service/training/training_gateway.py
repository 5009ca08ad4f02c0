"""The gateway's side of training over real sockets, and a small HTTP server in the trainer's place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from aiohttp import web
from fastapi import FastAPI

from adapters.costs import Prices
from adapters.store import Store
from service.access.caller import Caller
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.config import Settings
from service.costs.estimate import EstimateService
from service.costs.routes import router as costs_router
from service.costs.runs import TrainerCosts
from service.error_handlers import RequestIds
from service.errors import NotFound
from service.grounding.config import GroundingSettings
from service.http.schema import add_routes
from service.objects.adapters import StoredAdapters
from service.registry.catalog import (
    NO_SETTINGS,
    AdapterEntry,
    Catalog,
    CatalogSnapshot,
    Servable,
    VersionEntry,
    VersionSettings,
)
from service.training.client import TrainerClient
from service.training.evaluations import EvaluationService
from service.training.jobs import JobService
from service.training.ladders import LadderService
from service.training.routes import router
from service.training.service import Training
from tests.support.asgi import web_server
from tests.unit.service.files.files_app import ADMIN_KEY, MIB, FilesApp, bearer
from tests.unit.service.inference.fakes import until

BASE = "tiny-base"
JOB = {"object": "fine_tuning.job", "id": "ftjob-1", "status": "validating_files"}


@dataclass
class Asked:
    """A request as the stand-in got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def context(self) -> dict[str, Any]:
        """What the gateway says beside the client's body."""
        found: dict[str, Any] = self.json["context"]
        return found


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class StandIn:
    """Answers every request with ``answer``, or with ``status``, ``body`` and ``headers``; remembers what it got."""

    status: int = 200
    body: dict[str, Any] = field(default_factory=lambda: dict(JOB))
    headers: dict[str, str] = field(default_factory=dict)
    answer: Answer | None = None
    asked: list[Asked] = field(default_factory=list)
    cut: int = 0
    """Requests whose client left before their answer was whole."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            body = b"" if self.answer is not None else await request.read()
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.asked.append(Asked(request.method, request.path_qs, headers, body))
            if self.answer is not None:
                return await self.answer(request)
            return web.json_response(self.body, status=self.status, headers=self.headers)
        except (asyncio.CancelledError, ConnectionError):
            self.cut += 1
            raise

    @asynccontextmanager
    async def on(self, socket: Path) -> AsyncIterator[StandIn]:
        app = web.Application(client_max_size=64 * MIB)
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        try:
            yield self
        finally:
            await runner.cleanup()
            socket.unlink(missing_ok=True)


async def read_store(caller: Caller, store_id: str) -> None:
    """The one store that exists is `vs_policies`."""
    if store_id != "vs_policies":
        raise NotFound("no such vector store", param="vector_store_id", code="vector_store_not_found")


async def check_grounding(grounding: GroundingSettings, caller: Caller, param: str) -> None:
    """The same for a job's grounding."""
    for store_id in grounding.vector_store_ids:
        if store_id != "vs_policies":
            raise NotFound("no such vector store", param=f"{param}.vector_store_ids", code="vector_store_not_found")


class TrainingGateway(FilesApp):
    """Files, keys and the trainer's routes; ``catalog`` holds `voice@1` (live) and, not servable, `voice@2`."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.trainer = StandIn()
        self.trainer_socket = home / "t.sock"
        self.catalog = Catalog(BASE, 1)
        versions = {
            1: VersionEntry(1, "a" * 64, NO_SETTINGS, Servable.OK, 1),
            2: VersionEntry(2, "b" * 64, NO_SETTINGS, Servable.DAMAGED, 2),
        }
        grounded = VersionEntry(1, "c" * 64, VersionSettings(grounding=GroundingSettings()), Servable.OK, 3)
        shop = AdapterEntry("shop", 1, MappingProxyType({1: grounded}), MappingProxyType({"live": 1}))
        voice = AdapterEntry("voice", 1, MappingProxyType(versions), MappingProxyType({"live": 1}))
        secret = AdapterEntry("secret", 1, MappingProxyType({1: versions[1]}), MappingProxyType({"live": 1}))
        entries = {
            ("default", "voice"): voice,
            ("other", "secret"): secret,
            ("default", "hidden"): voice,
            ("default", "shop"): shop,
        }
        self.catalog.replace(CatalogSnapshot(MappingProxyType(entries)))
        self.store = Store(home / "store")
        self.client = TrainerClient(socket=str(self.trainer_socket), secret="s" * 16)
        self.training = Training(self.client, self.database, self.keys, self.files)
        self.gate = AdmissionQueue(Policy.from_settings(Settings(home=home)))

    def _callers_load(self) -> tuple[int, int]:
        callers = self.gate.scheduler.callers
        return callers.queued, callers.in_flight

    def app(self) -> FastAPI:
        app = super().app()
        app.state.training, app.state.callers_load = self.training, self._callers_load
        app.state.jobs = JobService(
            *(self.training, self.files, self.catalog, self.database, StoredAdapters(self.store)),
            check_grounding=check_grounding,
        )
        app.state.estimates = EstimateService(app.state.jobs, self.files, TrainerCosts(self.client), Prices())
        app.state.evaluations = EvaluationService(self.training, self.files, self.catalog, self.database)
        app.state.ladders = LadderService(self.training, self.files, self.catalog, self.database, read_store)
        add_routes(app, costs_router)
        add_routes(app, router)
        return app

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TrainingGateway]:
        """With the trainer's stand-in, and a real server of the routes behind ``http``."""
        socket = self.home / "g.sock"
        server = web_server(RequestIds(self.app()), uds=str(socket), log_level="warning", lifespan="off", ws="none")
        async with self.run(), self.trainer.on(self.trainer_socket):
            serving = asyncio.create_task(server.serve())
            await until(lambda: server.started)
            transport = httpx.AsyncHTTPTransport(uds=str(socket))
            try:
                async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as self.http:
                    self.http.headers["authorization"] = f"Bearer {ADMIN_KEY}"
                    yield self
            finally:
                server.should_exit = True
                with suppress(TimeoutError):
                    await asyncio.wait_for(serving, 60)
                await self.training.close()

    async def create(self, key: str | None = None, **body: Any) -> httpx.Response:
        """POST /v1/fine_tuning/jobs."""
        headers = bearer(key) | {name: body.pop(name) for name in ("idempotency-key",) if name in body}
        return await self.http.post("/v1/fine_tuning/jobs", json=body, headers=headers)

    async def living_keys(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.http.get("/v1/keys")).json()["data"]
        return found
