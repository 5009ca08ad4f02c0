"""The gateway's app: its routes, in which order its components start, and what a request passes through.

A request's way is the list in :func:`create_app`: CORS where it is set up (``service.cors``), the data path's bare ASGI
app for the inference routes, and for everything else request ids (``service.error_handlers``) and FastAPI.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__, heap
from service.access.routes import router as access_router
from service.batches.routes import router as batches_router
from service.batches.service import Batches
from service.config import Settings
from service.console.routes import console
from service.cors import Cors
from service.costs.routes import router as costs_router
from service.datasets.routes import router as datasets_router
from service.datasets.service import Datasets
from service.error_handlers import RequestIds, add_error_handlers
from service.files.routes import router as files_router
from service.fronts.gateway import NamesVersions
from service.health import health
from service.http.schema import add_routes
from service.inference.routes import MODELS, InferenceApp
from service.openapi import build as build_openapi
from service.pages import pages
from service.parts import Parts, announced_agents, build, data_path, fronts
from service.registry.routes import router as registry_router
from service.server.stopping import Stopping
from service.storage.retention import Retention
from service.storage.routes import StorageReport
from service.storage.routes import router as storage_router
from service.telemetry.routes import router as metrics_router
from service.training.revalidation_routes import router as revalidation_router
from service.training.routes import router as training_router
from service.usage.report import UsageReport
from service.usage.routes import router as usage_router

if TYPE_CHECKING:
    from service.knowledge.service import Knowledge


def create_app(settings: Settings, stopping: Stopping | None = None) -> ASGIApp:
    """Build the gateway. Nothing runs before its lifespan starts. ``stopping``: what `/readyz` tells of a stop.

    Raises:
        SettingsError: The base model, the store or the admin key cannot be used.
    """
    parts = build(settings)
    inference, batches = data_path(parts)
    # no redirects of slashes: they would go to wherever the request's Host header says
    api = FastAPI(
        title="Hatrack",
        version=__version__,
        lifespan=_lifespan(parts, batches),
        openapi_url=None,
        redirect_slashes=False,
    )
    api.state.authenticator = parts.keys.authenticator
    api.state.keys, api.state.refusals = parts.keys, parts.refusals
    api.state.registry = parts.registry
    api.state.usage_report = UsageReport(parts.database, parts.usage)
    add_routes(api, access_router)
    add_routes(api, usage_router)
    api.state.storage_report = StorageReport(parts.settings, parts.database)
    add_routes(api, storage_router)
    api.state.cost_report, api.state.budgets = parts.costs.report, parts.costs.budgets
    api.state.estimates, api.state.year_report = parts.costs.estimates, parts.costs.year
    add_routes(api, costs_router)  # before the routes that forward everything below /v1/fine_tuning
    add_routes(api, registry_router)
    api.state.files, api.state.training = parts.files, parts.sidecar.training
    api.state.callers_load = parts.fleet.callers_load
    add_routes(api, files_router)
    api.state.datasets = Datasets(parts.database, parts.files)
    add_routes(api, datasets_router)
    if parts.knowledge is not None:
        _add_knowledge(api, parts.knowledge)
    api.state.evaluations, api.state.revalidations = (
        parts.sidecar.evaluations,
        parts.sidecar.revalidations,
    )
    api.state.jobs, api.state.ladders = parts.sidecar.jobs, parts.sidecar.ladders
    add_routes(api, training_router)
    add_routes(api, batches_router)
    add_routes(api, revalidation_router)
    api.state.telemetry, api.state.batches = parts.telemetry, batches
    add_routes(api, metrics_router)
    for_fronts = fronts(parts)
    sessions = None if for_fronts is None else for_fronts.sessions
    add_routes(api, health(parts.fleet, parts.sidecar.watch, sessions, stopping))
    add_routes(api, pages(parts.catalog.base_name, lambda: build_openapi(api, inference.routes, __version__)))
    add_routes(api, console())
    add_error_handlers(api, [*inference.routes, MODELS])
    rest: ASGIApp = RequestIds(api)
    if for_fronts is not None:
        rest = NamesVersions(for_fronts.feed, rest)
    app: ASGIApp = DataPathFirst(inference, rest)
    peers = [peer for peer in (for_fronts, announced_agents(parts)) if peer is not None]
    if peers:
        app = PeersFirst(peers, app)
    return Cors(app, settings.cors_origins) if settings.cors_origins else app


class DataPathFirst:
    """Routes inference requests to the data path's app and all others to FastAPI."""

    def __init__(self, inference: InferenceApp, rest: ASGIApp) -> None:
        self._inference = inference
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if self._inference.handles(scope):
            await self._inference(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


class PeerApp(Protocol):
    """Answers other processes of Hatrack's: fronts, or agents."""

    def handles(self, scope: Scope) -> bool:
        """True for a request of theirs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""


class PeersFirst:
    """Routes requests of other processes of Hatrack's to what serves them; only a gateway that may have such has it."""

    def __init__(self, peers: Sequence[PeerApp], rest: ASGIApp) -> None:
        self._peers = tuple(peers)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        app = next((peer for peer in self._peers if peer.handles(scope)), self._rest)
        await app(scope, receive, send)


def _add_knowledge(api: FastAPI, knowledge: Knowledge) -> None:
    from service.knowledge.routes import router

    api.state.knowledge = knowledge
    add_routes(api, router)


def _end() -> None:
    """Have this process end as it does when it is asked to."""
    os.kill(os.getpid(), signal.SIGTERM)


def _lifespan(parts: Parts, batches: Batches) -> Any:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(parts.telemetry.running())
            await parts.database.open(_end)
            stack.push_async_callback(parts.database.close)
            await parts.usage.open()
            stack.push_async_callback(parts.usage.close)
            await stack.enter_async_context(parts.refusals.running())
            parts.limiter.restore(await parts.usage.charged_today())
            await stack.enter_async_context(parts.fleet.admitting())
            stack.push_async_callback(parts.fleet.stop)
            await parts.keys.open()
            if parts.objects is not None:
                await stack.enter_async_context(parts.objects.running())
            await parts.registry.open()
            stack.push_async_callback(parts.registry.close)
            await parts.files.open()
            stack.push_async_callback(parts.files.close)
            if parts.knowledge is not None:
                await parts.knowledge.open()
                stack.push_async_callback(parts.knowledge.close)
            await stack.enter_async_context(parts.grounding.running())
            for structured in parts.structured.values():
                await stack.enter_async_context(structured.running())
            await parts.fleet.end_unnamed()
            await parts.fleet.start()
            await stack.enter_async_context(parts.sidecar.running())
            await stack.enter_async_context(parts.costs.budgets.running())
            await stack.enter_async_context(batches.running())
            await stack.enter_async_context(Retention(parts.settings, parts.database).running())
            heap.freeze()
            stack.callback(heap.thaw)
            parts.announcements.open()
            yield

    return lifespan
