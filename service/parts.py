"""The composition root: every component that lives as long as the gateway, and how they are connected."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapters.store import Store
from service.access.limits import KeyLimiter
from service.access.refusals import Refusals
from service.access.service import Keys
from service.announcements import Announcements, AnnouncementsApp
from service.batches.service import Batches
from service.config import GIB, MIB, Settings
from service.costs.assemble import Costs
from service.costs.assemble import assemble as assemble_costs
from service.data_path import make_dispatch
from service.database import Database
from service.engine.agent_wire import ANNOUNCE_PURPOSE
from service.engine.assemble import engine_version
from service.files.service import Files
from service.fleet import EngineParts, Fleet
from service.fronts.feed import Feed
from service.fronts.gateway import FrontsApp
from service.fronts.reports import FrontReports
from service.fronts.sessions import FrontSessions
from service.fronts.topology import topology_of
from service.fronts.wire import PURPOSE as FRONTS
from service.grounding.assemble import Grounding
from service.grounding.assemble import assemble as assemble_grounding
from service.grounding.config import EMBEDDED
from service.http.signing import Verifier, signing_key
from service.inference.calls import CacheSalts
from service.inference.dispatch import Dispatch
from service.inference.embedding import EmbeddingRequests
from service.inference.engines import BaseLimits, Dispatches
from service.inference.length import PromptLimit
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from service.objects.adapters import StoredAdapters
from service.objects.content import Objects, objects_for
from service.registry.catalog import Catalog
from service.registry.service import Registry
from service.structured.checker import StructuredOutputs
from service.telemetry.admission import AdmissionSource, ResidencySource
from service.telemetry.component_sources import (
    GroundingSource,
    LimitsSource,
    ObjectsSource,
    RegistrySource,
    StructuredSource,
    TrainerSource,
    VerdictsSource,
)
from service.telemetry.engine import EngineSource
from service.telemetry.exposition import Labelled, Source
from service.telemetry.record import Accounts, LogAccount, RefusalAccount
from service.telemetry.telemetry import Telemetry
from service.training.sidecar import Sidecar
from service.training.sidecar import assemble as assemble_sidecar
from service.usage.account import UsageAccount, UsageSource
from service.usage.engine_time import EngineMeter

if TYPE_CHECKING:
    from service.knowledge.service import Knowledge


SALTS: Final = "cache-salts"
"""What the key of the prefix caches' salts is derived for, which gateway and fronts have in common."""


@dataclass(frozen=True, slots=True)
class Parts:
    """All components that live as long as the gateway."""

    settings: Settings
    database: Database
    keys: Keys
    limiter: KeyLimiter
    refusals: Refusals
    usage: UsageAccount
    fleet: Fleet
    announcements: Announcements
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
    structured: dict[str, StructuredOutputs]
    """By the served name of the base whose tokenizer counts."""


def build(settings: Settings) -> Parts:
    """Create the components and connect them."""
    database = Database(settings.home / "hatrack.db", settings.database_address)
    limiter = KeyLimiter()
    keys = _keys(settings, database, limiter)
    objects = objects_for(settings)
    adapters = _adapters(settings, objects, lambda: _kept_adapters(fleet, registry))
    fleet = Fleet.from_settings(settings, adapters)
    bases, settings = fleet.bases, fleet.default.agent.settings
    others = {base.name: base.created_at for base in bases if base is not bases.default}
    catalog = Catalog(bases.default.name, bases.default.created_at, settings.embedder_served_name, others)
    meter = EngineMeter(fleet.clocks, fleet.running_engines)
    usage = UsageAccount(database, flush_s=settings.usage_flush_s, meter=meter)
    refusals = Refusals(database)
    telemetry = Telemetry(settings, catalog, engine_version())
    files = _files(settings, database, objects)
    knowledge = _knowledge(settings, database, files)
    own = {EMBEDDED: knowledge} if knowledge is not None else {}
    grounding = assemble_grounding([base.settings for base in bases], keys.derived_secret("grounding"), own)
    registry = Registry(settings, database, adapters, catalog, bases, check_stores=grounding.hook.check_settings)
    fleet.before_spawn(registry.collect)
    check_store = None if knowledge is None else knowledge.show
    sidecar = assemble_sidecar(
        *(settings, database, keys, catalog, files, registry.verdicts, adapters),
        other_bases=[base.settings for base in bases if base is not bases.default],
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
        fleet=fleet,
        announcements=Announcements(fleet),
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
        structured={base.name: StructuredOutputs.from_settings(base.settings) for base in bases},
    )
    telemetry.watch(*_sources(parts))
    return parts


def data_path(parts: Parts) -> tuple[InferenceApp, Batches]:
    """The data path, and the batches, whose requests go through it."""
    settings, telemetry, fleet = parts.settings, parts.telemetry, parts.fleet
    budgets = parts.costs.budgets
    accounts = Accounts(LogAccount(), parts.usage, budgets, RefusalAccount(parts.refusals), *telemetry.accounts)
    default, *others = _base_limits(parts).items()
    pipeline = Pipeline(
        settings,
        parts.keys.authenticator,
        parts.catalog,
        _dispatch(parts),
        account=accounts,
        limiter=parts.limiter,
        tracer=telemetry.tracer,
        hook=parts.grounding.hook,
        prompt_limit=default[1].prompt_limit,
        grammars=default[1].grammars,
        limits=dict(others),
        check_budget=budgets.check,
        embeddings=None
        if parts.knowledge is None
        else EmbeddingRequests(settings, parts.knowledge.embedder, fleet.default.admission.embedding),
    )
    telemetry.in_flight = lambda: pipeline.in_flight
    # no route refuses what the base with the longest context takes; the others' engines do
    widest = max((base.settings for base in fleet.bases), key=lambda each: each.context or sys.maxsize)
    inference = InferenceApp(widest, pipeline, parts.refusals)
    batches = Batches.from_settings(settings, parts.database, parts.files, inference, fleet, budgets.check)
    telemetry.watch(batches)
    return inference, batches


def fronts(parts: Parts) -> FrontsApp | None:
    """What serves the gateway's fronts; None: it has none."""
    key = parts.settings.front_key
    if key is None:
        return None
    authenticator = parts.keys.authenticator
    sessions = FrontSessions(authenticator, parts.limiter)
    parts.telemetry.watch(sessions)
    feed = Feed(
        authenticator,
        parts.catalog,
        topology_of(parts.settings, parts.fleet, _base_limits(parts), parts.catalog.embedder_name),
        exhausted=parts.costs.budgets.exhausted,
        fronts=lambda: len(sessions.connected),
        salts=parts.keys.derived_secret(SALTS),
        addresses=lambda: parts.announcements.addresses,
    )
    parts.announcements.on_change(feed.agents_changed)
    reports = FrontReports(
        parts.database,
        authenticator,
        parts.refusals,
        writing=parts.usage.writing,
        add_engine_time=parts.costs.budgets.add_engine_time,
        suspect=parts.registry.report_failure,
    )
    return FrontsApp(Verifier(signing_key(key.get_secret_value(), FRONTS)), feed, sessions, reports)


def announced_agents(parts: Parts) -> AnnouncementsApp | None:
    """What hears the agents that announce themselves; None: none may."""
    key = parts.settings.agent_key
    if key is None or not parts.announcements:
        return None
    return AnnouncementsApp(Verifier(signing_key(key.get_secret_value(), ANNOUNCE_PURPOSE)), parts.announcements)


def _dispatch(parts: Parts) -> Dispatch | Dispatches:
    salts = None if parts.settings.front_key is None else CacheSalts(parts.keys.derived_secret(SALTS))
    return make_dispatch(
        parts.fleet,
        embedder_name=parts.catalog.embedder_name,
        suspect=parts.registry.report_failure,
        copies=parts.adapters.copies,
        salts=salts,
    )


def _base_limits(parts: Parts) -> dict[str, BaseLimits]:
    return {
        base.name: BaseLimits(
            PromptLimit.of_checkpoint(base.settings.base_dir, base.settings.context),
            parts.structured[base.name],
            base.settings.context,
        )
        for base in parts.fleet.bases
    }


def _sources(parts: Parts) -> tuple[Source, ...]:
    """What `/metrics` is read from."""
    account = parts.telemetry.account

    def engine(each: EngineParts) -> Source:
        config = each.watched.config
        return EngineSource(each.watched, each.watched.client, slots=config.slots, resident_limit=config.resident)

    def admission(each: EngineParts) -> Source:
        return AdmissionSource(each.admission.queue, parts.settings.queue_size, account)

    def residency(each: EngineParts) -> Source:
        return ResidencySource(each.admission.residency, account)

    def of_all(make: Callable[[EngineParts], Source]) -> Source:
        labelled = {each.label: make(each) for each in parts.fleet.parts if each.label is not None}
        return Labelled("engine", labelled) if labelled else make(parts.fleet.default)

    return (
        of_all(engine),
        of_all(admission),
        of_all(residency),
        LimitsSource(parts.limiter),
        UsageSource(parts.usage),
        RegistrySource(parts.registry),
        VerdictsSource(parts.registry.verdicts),
        GroundingSource(parts.grounding.hook.counts),
        ObjectsSource(None if parts.objects is None else parts.objects.cache),
        StructuredSource(tuple(parts.structured.values())),
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


def _adapters(
    settings: Settings, objects: Objects | None, kept: Callable[[], Collection[str] | None]
) -> StoredAdapters:
    store = Store(settings.store_dir)
    return StoredAdapters(store) if objects is None else StoredAdapters(store, objects.store, objects.cache, kept)


def _kept_adapters(fleet: Fleet, registry: Registry) -> Collection[str] | None:
    """The adapters whose files an engine may read again; None: one has not said yet what it has loaded."""
    resident = fleet.resident_adapters()
    return None if resident is None else resident.union(registry.pinned_digests)


def _files(settings: Settings, database: Database, objects: Objects | None) -> Files:
    return Files(
        settings.files_dir,
        database,
        max_file_bytes=int(settings.max_file_mib * MIB),
        max_project_bytes=int(settings.max_files_gib * GIB),
        objects=None if objects is None else (objects.store, objects.cache),
    )
