"""The registry: what happens to an adapter from its upload to its deletion.

    upload → inspected → in the store → proving → ready (an alias moves)
                                               ↘ rejected

With ``wait`` a version is written only once it is proven, so that a refusal leaves nothing behind and a crash leaves
files that no row names, which ``collect`` removes. Without, the row comes first, and a restart takes up the proof.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapters.base import BaseDescription
from adapters.inspect import Inspection, inspect_weights
from adapters.manifest import Manifest
from adapters.names import parse_alias, parse_name
from adapters.proof import Evidence
from adapters.store import WEIGHTS_FILE, Staging, Store
from service.access.audit import Actor
from service.access.caller import Caller
from service.access.records import require_project
from service.admission.background import BackgroundEngine
from service.concurrency import in_thread
from service.config import MIB, Settings
from service.database import Database
from service.engine.client import EngineClient
from service.errors import BadRequest, Conflict, NotFound
from service.registry import expiry_records, records
from service.registry.alias_service import AliasService
from service.registry.audit_notes import system_actor
from service.registry.catalog import Catalog, Servable
from service.registry.corruption import CorruptionChecker
from service.registry.counts import RegistryCounts
from service.registry.deletion import Deletion
from service.registry.loaded_adapters import LoadedAdapters
from service.registry.pins import PinLoader, Pins
from service.registry.proof import Prober
from service.registry.proving import ENGINE_EVIDENCE, Proving, reference_of
from service.registry.readiness import CheckStores, PromptChecker, SettingsProof, no_stores
from service.registry.records import AdapterWithVersions, VersionDraft, VersionRow
from service.registry.revalidation import Freshness, RevalidationState
from service.registry.rollback import LiveRollback
from service.registry.state import RegistryState, find_equal_version, require_weights
from service.registry.upload import AdapterUpload, require_name_allowed
from service.registry.verdicts import Verdicts

Receive = Callable[[Callable[[bytes], object]], Awaitable[AdapterUpload]]
"""Reads an upload: the weights go to the given function, the rest is returned."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """A version in the API's form, with the HTTP status: 200 existed already, 201 new, 202 being proven."""

    version: dict[str, Any]
    status: int


class Registry:
    """Makes all changes to adapters, versions and aliases, and keeps the catalog up to date.

    Args:
        settings: Bounds of an upload and of a proof.
        database: Open and migrated.
        store: Where the files are.
        catalog: What the data path reads.
        base: The base model that the engine serves.
        engine: Who is asked for log-probabilities.
        restart_engine: Called with a reason when the engine's answers are poisoned.
        residency: Who is asked what the engine has loaded.
        check_stores: Whether the grounding of a version without weights can be asked for.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        catalog: Catalog,
        base: BaseDescription,
        engine: BackgroundEngine,
        restart_engine: Callable[[str], Awaitable[None]],
        residency: EngineClient,
        check_stores: CheckStores = no_stores,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._base = base
        freshness = Freshness(base.fingerprint, settings.revalidate_days)
        self._state = RegistryState(database, store, catalog, base, freshness)
        self._prober = Prober(
            engine,
            base.served_name,
            restart_engine,
            timeout_s=settings.proof_timeout_s,
            neighbours=LoadedAdapters(catalog, residency),
        )
        self._prompts = PromptChecker(engine, check_stores)
        self._proving = Proving(self._state, self._prober, self._prompts)
        self._corruption_checker = CorruptionChecker(self._prober, self._proving.mark_corrupt)
        self.aliases = AliasService(self._state, self._prober, settings.engine_slots)
        self._pin_loader = PinLoader(catalog, residency, self._prober, settings.engine_slots)
        self.pins = Pins(self._state, self._pin_loader, settings.engine_slots)
        self._live_rollback = LiveRollback(self._state, self.aliases)
        self.verdicts = Verdicts(self._state, self._live_rollback.wake)
        self.deletion = Deletion(self._state)
        self._store_lock = asyncio.Lock()
        self._workers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Clean up after a crash, fill the catalog, and resume unfinished proofs."""
        await in_thread(self._store.recover)
        await self._state.refresh_all()
        for project, name, version_id in await self._database.run(records.proving):
            self._proving.spawn(project, name, version_id, system_actor(project))
        self._workers = [
            asyncio.create_task(self._corruption_checker.work(), name="registry-corruption"),
            asyncio.create_task(self._pin_loader.work(), name="registry-pins"),
            asyncio.create_task(self.deletion.work(), name="registry-expiry"),
        ]
        if self._settings.revalidate_rollback:
            self._workers.append(asyncio.create_task(self._live_rollback.work(), name="registry-rollback"))

    async def close(self) -> None:
        """Stop background tasks; the next ``open`` resumes interrupted proofs."""
        await self._proving.close()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    @property
    def counts(self) -> RegistryCounts:
        """RegistryCounts over all projects, as of the last change."""
        return self._state.counts

    @property
    def max_weights(self) -> int:
        """Maximum size of a weights file, bytes."""
        return int(self._settings.max_adapter_mib * MIB)

    # push

    async def push(self, caller: Caller, receive: Receive, *, wait: bool, actor: Actor) -> PushResult:
        """Receive an upload, inspect and store it, and prove the version.

        Raises:
            Forbidden: The key's globs do not match the adapter's name, whether or not there is one of that name.
            NotFound: There is no such project.
            AdapterError: What is wrong with the adapter, or what the engine does not show of it.
            HatrackError: The upload is not well formed, or the engine cannot be asked.
        """
        await self._database.run(lambda db: require_project(db, caller.project))
        staging = self._store.stage(max_weights_bytes=self.max_weights)
        try:
            upload = await receive(staging.weights.write)
            require_name_allowed(caller, upload.name)
            name = parse_name(upload.name, base_name=self._base.served_name)
            if upload.alias:
                parse_alias(upload.alias)
            if not upload.has_weights:
                await self._prompts.check_grounding(upload.settings, caller)
                draft = upload.draft_without_weights(self._base.fingerprint)
                return await self._register(caller.project, name, draft, wait=wait, actor=actor)
            reference_of(upload.metadata)
            inspection = await in_thread(self._inspect, staging, upload)
            async with self._store_lock:  # no collection between the commit and the keeping
                digest = await in_thread(staging.commit, inspection.manifest)
                self._proving.keep(digest)
        finally:
            await in_thread(staging.discard)
        try:
            draft = upload.draft(inspection, digest, self._base.fingerprint)
            return await self._register(caller.project, name, draft, wait=wait, actor=actor)
        finally:
            self._proving.release(digest)

    def _inspect(self, staging: Staging, upload: AdapterUpload) -> Inspection:
        manifest = Manifest.parse(
            upload.config,
            max_rank=self._settings.engine_max_rank,
            strict_base=self._settings.strict_base,
            base_name=self._settings.base_source,
        )
        staging.weights.finish()
        return inspect_weights(
            staging.weights.path, manifest, self._base, max_update_ratio=self._settings.max_update_ratio
        )

    async def _register(self, project: str, name: str, draft: VersionDraft, *, wait: bool, actor: Actor) -> PushResult:
        unmeasured: list[VersionRow] = []
        async with self._state.lock(project, name):
            adapter = await self._database.run(lambda db: records.find(db, project, name))
            same = find_equal_version(adapter, draft.digest, draft.settings, self._state.is_same_base)
            if same is not None and same.expires_at is not None:
                expires_at, version_id = draft.expires_at, same.id
                await self._database.run(lambda db: expiry_records.prolong(db, version_id, expires_at))
            if adapter is not None and same is not None and await self._state.is_servable(same):
                alias = draft.wanted_alias
                if alias:
                    unmeasured = self.aliases.unmeasured(adapter, alias, [same])
                if not unmeasured:
                    if alias:
                        await self.aliases.follow_push(adapter, alias, same, actor=actor)
                    return PushResult(await self.version(project, name, same.number), 200)
            elif not wait:
                return await self._register_later(project, name, draft, same, actor)
        running = self._proving.running(same.id) if same is not None else None
        if unmeasured or (same is not None and running is not None):
            # outside of the lock: proofs that go first may take minutes
            await self.aliases.measure(unmeasured)
            if running is not None:
                await asyncio.wait({running})
            return await self._register(project, name, draft, wait=wait, actor=actor)
        evidence = await self._proving.ask(project, draft)
        return await self._register_proven(project, name, draft, evidence, actor)

    async def _register_later(
        self, project: str, name: str, draft: VersionDraft, same: VersionRow | None, actor: Actor
    ) -> PushResult:
        if same is None or self._proving.running(same.id) is None:
            self._proving.require_room()
            if same is None:
                version_id = await self._database.run(
                    lambda db: records.add_version(db, project, name, draft, actor=actor)
                )
            else:
                version_id = same.id
                await self._database.run(
                    lambda db: records.restart_proof(db, version_id, draft.wanted_alias, actor=actor)
                )
            await self._state.recount()
            self._proving.spawn(project, name, version_id, actor)
        else:
            version_id = same.id
        row = await self._database.run(lambda db: records.version_by_id(db, version_id))
        if row is None:
            raise NotFound(f"the version of `{name}` was deleted while it was being proven", code="version_not_found")
        return PushResult(await self.version(project, name, row.number), 202)

    async def _register_proven(
        self, project: str, name: str, draft: VersionDraft, evidence: Evidence | SettingsProof, actor: Actor
    ) -> PushResult:
        draft = replace(draft, warnings=[*draft.warnings, *evidence.warnings])
        proof = evidence.model_dump(mode="json")
        async with self._state.lock(project, name):
            adapter = await self._database.run(lambda db: records.find(db, project, name))
            same = find_equal_version(adapter, draft.digest, draft.settings, self._state.is_same_base)
            if same is None:
                row = await self._proving.settle(project, name, draft, proof, actor=actor)
            else:
                again = replace(same, warnings=draft.warnings, wanted_alias=draft.wanted_alias)
                row = await self._proving.settle(project, name, again, proof, actor=actor, again=True)
        await self._proving.refresh_others(draft.digest, (project, name))
        if row is None:
            raise NotFound(f"the version of `{name}` was deleted while it was being proven", code="version_not_found")
        return PushResult(await self.version(project, name, row.number), 201 if same is None else 200)

    # proofs

    async def prove(self, project: str, name: str, number: str, *, actor: Actor) -> dict[str, Any]:
        """Prove a version again: a rejected one that passes becomes ready, a corrupt one servable.

        Raises:
            NotFound: There is no such version.
            Conflict: It is being proven, belongs to another base, or its files are damaged.
            ProofError: It failed. Where the engine itself shows that (ENGINE_EVIDENCE), a ready version is corrupt from
                now on, and with it every version of the digest.
        """
        _, row = await self._state.version(project, name, number)
        servable = (await self._state.servability([row]))[row.id]
        if self._proving.running(row.id) is not None:
            raise Conflict(f"the version `{name}@{row.number}` is still being proven", code="version_not_ready")
        if servable in (Servable.OTHER_BASE, Servable.DAMAGED):
            raise Conflict(
                f"the version `{name}@{row.number}` cannot be proven: {servable.reason}",
                code=f"version_{servable.value}",
            )
        try:
            served = row.state == "ready"
            evidence = await self._proving.ask(project, row, is_served=served)
        except ENGINE_EVIDENCE:
            if row.state == "ready" and row.digest is not None:
                await self._proving.mark_corrupt(row.digest)
            raise
        if row.state == "ready" and row.wanted_alias:
            row = replace(row, wanted_alias="")  # it has had its alias: others may have been promoted since
        await self._proving.settle_row(project, name, row, evidence, actor=actor, again=True)
        return await self.version(project, name, row.number)

    def report_failure(self, digest: str) -> None:
        """Report that the engine failed under this adapter, to check it in the background. Returns at once."""
        self._corruption_checker.add(digest)

    async def wait_idle(self) -> None:
        """Return when no proof and no corruption check is running."""
        await self._proving.idle()
        await self._corruption_checker.idle()

    # reading

    async def version(self, project: str, name: str, number: str | int) -> dict[str, Any]:
        """One version in the API's form. Raises NotFound."""
        adapter, row = await self._state.version(project, name, number)
        return await self._state.version_object(adapter, row)

    async def adapter(self, project: str, name: str, only: RevalidationState | None = None) -> dict[str, Any]:
        """One adapter in the API's form, with its versions; those in the state ``only``. Raises NotFound."""
        adapter = await self._state.adapter(project, name)
        if all(row.state == "rejected" for row in adapter.versions):
            raise NotFound(f"the adapter `{name}` does not exist", code="adapter_not_found")
        return (await self._state.adapter_objects([adapter], only))[0]

    async def adapters(
        self, caller: Caller, after: str | None, limit: int, only: RevalidationState | None = None
    ) -> dict[str, Any]:
        """A page of the adapters that the caller may see, oldest first; with ``only``, of those with such versions.

        Raises:
            BadRequest: ``after`` names none of them.
        """

        def work(db: sa.Connection) -> list[AdapterWithVersions] | None:
            chosen = None if only is None else {*self.verdicts.names(db, caller.project, only), after}

            def visible(name: str) -> bool:
                return caller.may_use(name) and (chosen is None or name in chosen)

            return records.listed(db, caller.project, after, limit + 1, visible)

        page = await self._database.run(work)
        if page is None:
            raise BadRequest("`after` must be the name of an adapter: a page's `last_id`", param="after")
        data = await self._state.adapter_objects(page[:limit], only)
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["name"] if data else None,
            "last_id": data[-1]["name"] if data else None,
            "has_more": len(page) > limit,
        }

    async def config_file(self, project: str, name: str, number: str) -> bytes:
        """The uploaded adapter_config.json, byte for byte. Raises NotFound."""
        _, row = await self._state.version(project, name, number)
        require_weights(name, row)
        return await self._database.run(lambda db: records.version_file(db, row.id, "config")) or b""

    async def weights_file(self, project: str, name: str, number: str) -> Path:
        """Path of the weights file, identical to the upload. Raises NotFound, NotInStore."""
        _, row = await self._state.version(project, name, number)
        return self._store.path(require_weights(name, row)) / WEIGHTS_FILE

    # deleting

    async def collect(self) -> list[str]:
        """Remove the files that no version uses; returns their digests.

        Call it only while no engine runs: one that had an adapter dies if it no longer finds its files.
        """
        async with self._store_lock:
            used = await self._database.run(records.digests_in_use)
            return await in_thread(self._store.collect, used | self._proving.held_digests)
