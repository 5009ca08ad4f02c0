"""The composition root: what exists, in which order it starts, and what a request passes through.

A request's way is the list in :func:`create_app`: CORS where it is set up (``service.cors``), the data path's bare ASGI
app for the inference routes, and for everything else request ids (``service.error_handlers``) and FastAPI.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.base import BaseDescription
from adapters.store import Store
from service import __version__
from service.access.limits import KeyLimiter
from service.access.refusals import Refusals
from service.access.routes import router as access_router
from service.access.service import Keys
from service.admission.admission import Admission
from service.batches.routes import router as batches_router
from service.batches.service import Batches
from service.config import GIB, MIB, Settings
from service.console.routes import console
from service.cors import Cors
from service.costs.assemble import Costs
from service.costs.assemble import assemble as assemble_costs
from service.costs.routes import router as costs_router
from service.database import Database
from service.datasets.routes import router as datasets_router
from service.datasets.service import Datasets
from service.engine.assemble import describe_base, engine_for, engine_version
from service.engine.busy import EngineClock
from service.engine.watched import WatchedEngine
from service.error_handlers import RequestIds, add_error_handlers
from service.files.routes import router as files_router
from service.files.service import Files
from service.grounding.assemble import Grounding
from service.grounding.assemble import assemble as assemble_grounding
from service.grounding.config import EMBEDDED
from service.health import health
from service.http.schema import add_routes
from service.inference.dispatch import Dispatch
from service.inference.embedding import EmbeddingRequests
from service.inference.length import PromptLimit
from service.inference.pipeline import Pipeline
from service.inference.routes import MODELS, InferenceApp
from service.objects.adapters import StoredAdapters
from service.objects.content import Objects, objects_for
from service.openapi import build as build_openapi
from service.pages import pages
from service.registry.catalog import Catalog
from service.registry.routes import router as registry_router
from service.registry.service import Registry
from service.storage.retention import Retention
from service.storage.routes import StorageReport
from service.storage.routes import router as storage_router
from service.structured.checker import StructuredOutputs
from service.telemetry.admission import AdmissionSource, ResidencySource
from service.telemetry.component_sources import (
    GroundingSource,
    LimitsSource,
    RegistrySource,
    StructuredSource,
    TrainerSource,
    VerdictsSource,
)
from service.telemetry.engine import EngineSource
from service.telemetry.exposition import Source
from service.telemetry.record import Accounts, LogAccount, RefusalAccount
from service.telemetry.routes import router as metrics_router
from service.telemetry.telemetry import Telemetry
from service.training.revalidation_routes import router as revalidation_router
from service.training.routes import router as training_router
from service.training.sidecar import Sidecar
from service.training.sidecar import assemble as assemble_sidecar
from service.usage.account import UsageAccount, UsageSource
from service.usage.engine_time import EngineMeter
from service.usage.report import UsageReport
from service.usage.routes import router as usage_router

if TYPE_CHECKING:
    from service.knowledge.service import Knowledge


@dataclass(frozen=True, slots=True)
class Parts:
    """All components that live as long as the gateway."""

    settings: Settings
    database: Database
    keys: Keys
    limiter: KeyLimiter
    refusals: Refusals
    usage: UsageAccount
    base: BaseDescription
    supervisor: WatchedEngine
    admission: Admission
    catalog: Catalog
    objects: Objects | None
    adapters: StoredAdapters
    registry: Registry
    telemetry: Telemetry
    files: Files
    knowledge: Knowledge | None
    grounding: Grounding
    sidecar: Sidecar
    costs: Costs
    structured: StructuredOutputs
    engine_clock: EngineClock


def create_app(settings: Settings) -> ASGIApp:
    """Build the gateway. Nothing runs before its lifespan starts.

    Raises:
        SettingsError: The base model, the store or the admin key cannot be used.
    """
    parts = build(settings)
    inference, batches = _data_path(parts)
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
    api.state.admission_queue = parts.admission.queue
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
    fingerprint = parts.base.fingerprint.digest
    add_routes(api, health(parts.supervisor, parts.sidecar.watch, settings.base_served_name, fingerprint))
    add_routes(api, pages(settings.base_served_name, lambda: build_openapi(api, inference.routes, __version__)))
    add_routes(api, console())
    add_error_handlers(api, [*inference.routes, MODELS])
    app = DataPathFirst(inference, RequestIds(api))
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


def build(settings: Settings) -> Parts:
    """Create the components and connect them."""
    database = Database(settings.home / "hatrack.db", settings.database_address)
    limiter = KeyLimiter()
    keys = _keys(settings, database, limiter)
    base = describe_base(settings)
    made_at = int((settings.base_dir / "config.json").stat().st_mtime)
    catalog = Catalog(settings.base_served_name, made_at, settings.embedder_served_name)
    objects = objects_for(settings)
    supervisor = engine_for(settings, base)
    engine_clock = EngineClock()
    adapters = _adapters(settings, objects, lambda: _kept_adapters(supervisor, admission, registry))
    admission = Admission(settings, supervisor.client, supervisor.on_change, engine_clock, adapters)
    background = admission.background_engine
    meter = EngineMeter(engine_clock, lambda: supervisor.state.name != "down")
    usage = UsageAccount(database, flush_s=settings.usage_flush_s, meter=meter)
    refusals = Refusals(database)
    telemetry = Telemetry(settings, catalog, engine_version())
    files = _files(settings, database, objects)
    knowledge = _knowledge(settings, database, files)
    own = {EMBEDDED: knowledge} if knowledge is not None else {}
    grounding = assemble_grounding(settings, keys.derived_secret("grounding"), own)
    registry = Registry(
        *(settings, database, adapters, catalog, base, background, supervisor.restart, supervisor.client),
        check_stores=grounding.hook.check_settings,
    )
    supervisor.before_spawn = registry.collect
    check_store = None if knowledge is None else knowledge.show
    sidecar = assemble_sidecar(
        *(settings, database, keys, catalog, files, registry.verdicts, adapters),
        check_store=check_store,
        check_grounding=grounding.hook.check_settings,
    )
    costs = assemble_costs(settings, database, usage, sidecar, files, catalog)
    parts = Parts(
        settings=settings,
        database=database,
        keys=keys,
        limiter=limiter,
        refusals=refusals,
        usage=usage,
        base=base,
        supervisor=supervisor,
        admission=admission,
        catalog=catalog,
        objects=objects,
        adapters=adapters,
        registry=registry,
        telemetry=telemetry,
        files=files,
        knowledge=knowledge,
        grounding=grounding,
        sidecar=sidecar,
        costs=costs,
        structured=StructuredOutputs.from_settings(settings),
        engine_clock=engine_clock,
    )
    telemetry.watch(*_sources(parts))
    return parts


def _data_path(parts: Parts) -> tuple[InferenceApp, Batches]:
    """The data path, and the batches, whose requests go through it."""
    settings, telemetry, supervisor = parts.settings, parts.telemetry, parts.supervisor
    budgets = parts.costs.budgets
    accounts = Accounts(LogAccount(), parts.usage, budgets, RefusalAccount(parts.refusals), *telemetry.accounts)
    dispatch = Dispatch(
        settings,
        supervisor.client,
        parts.catalog.base_name,
        embedder_name=parts.catalog.embedder_name,
        suspect=parts.registry.report_failure,
        saw_tokens=supervisor.saw_tokens,
        admission_queue=parts.admission.queue,
        counting=parts.admission.counting,
        engine_clock=parts.engine_clock,
        copies=parts.adapters.copies,
    )
    pipeline = Pipeline(
        settings,
        parts.keys.authenticator,
        parts.catalog,
        dispatch,
        account=accounts,
        limiter=parts.limiter,
        tracer=telemetry.tracer,
        hook=parts.grounding.hook,
        prompt_limit=PromptLimit.of_checkpoint(settings.base_dir, settings.context),
        grammars=parts.structured,
        check_budget=budgets.check,
        embeddings=None
        if parts.knowledge is None
        else EmbeddingRequests(settings, parts.knowledge.embedder, parts.admission.embedding),
    )
    telemetry.in_flight = lambda: pipeline.in_flight
    inference = InferenceApp(settings, pipeline, parts.refusals)
    batches = Batches.from_settings(settings, parts.database, parts.files, inference, supervisor, budgets.check)
    telemetry.watch(batches)
    return inference, batches


def _sources(parts: Parts) -> tuple[Source, ...]:
    """What `/metrics` is read from."""
    supervisor, account = parts.supervisor, parts.telemetry.account
    config = supervisor.config
    return (
        EngineSource(supervisor, supervisor.client, slots=config.slots, resident_limit=config.resident),
        AdmissionSource(parts.admission.queue, parts.settings.queue_size, account),
        ResidencySource(parts.admission.residency, account),
        LimitsSource(parts.limiter),
        UsageSource(parts.usage),
        RegistrySource(parts.registry),
        VerdictsSource(parts.registry.verdicts),
        GroundingSource(parts.grounding.hook.counts),
        StructuredSource(parts.structured),
        TrainerSource(parts.sidecar.watch),
    )


def _keys(settings: Settings, database: Database, limiter: KeyLimiter) -> Keys:
    given_admin_key = settings.admin_key.get_secret_value() if settings.admin_key else None
    return Keys(settings.home, database, given_admin_key, on_revoked=limiter.forget)


def _knowledge(settings: Settings, database: Database, files: Files) -> Knowledge | None:
    if not settings.knowledge:
        return None
    from service.knowledge.service import Knowledge  # a gateway without vector stores imports no numpy

    return Knowledge.from_settings(settings, database, files)


def _add_knowledge(api: FastAPI, knowledge: Knowledge) -> None:
    from service.knowledge.routes import router

    api.state.knowledge = knowledge
    add_routes(api, router)


def _adapters(
    settings: Settings, objects: Objects | None, kept: Callable[[], Collection[str] | None]
) -> StoredAdapters:
    store = Store(settings.store_dir)
    return StoredAdapters(store) if objects is None else StoredAdapters(store, objects.store, objects.cache, kept)


def _kept_adapters(supervisor: WatchedEngine, admission: Admission, registry: Registry) -> Collection[str] | None:
    """The adapters whose files the engine may read again; None: it has not said yet what it has loaded."""
    snapshot = admission.residency.snapshot()
    if not snapshot.known and supervisor.state.name == "ready":
        return None
    return snapshot.resident.union(registry.pinned_digests)


def _files(settings: Settings, database: Database, objects: Objects | None) -> Files:
    return Files(
        settings.files_dir,
        database,
        max_file_bytes=int(settings.max_file_mib * MIB),
        max_project_bytes=int(settings.max_files_gib * GIB),
        objects=None if objects is None else (objects.store, objects.cache),
    )


def _lifespan(parts: Parts, batches: Batches) -> Any:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(parts.telemetry.running())
            await parts.database.open()
            stack.push_async_callback(parts.database.close)
            await parts.usage.open()
            stack.push_async_callback(parts.usage.close)
            await stack.enter_async_context(parts.refusals.running())
            parts.limiter.restore(await parts.usage.charged_today())
            await stack.enter_async_context(parts.admission.running())
            stack.push_async_callback(parts.supervisor.stop)
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
            await stack.enter_async_context(parts.structured.running())
            await parts.supervisor.start()
            await stack.enter_async_context(parts.sidecar.running())
            await stack.enter_async_context(parts.costs.budgets.running())
            await stack.enter_async_context(batches.running())
            await stack.enter_async_context(Retention(parts.settings, parts.database).running())
            # what lives now lives until the end: each full collection over it would stop the event loop for 70 ms
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            yield

    return lifespan
