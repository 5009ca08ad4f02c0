"""The registry: what happens to an adapter from its upload to its deletion.

upload → inspected → in the store → proving → ready (an alias moves)
                                           ↘ rejected
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from adapters.store import WEIGHTS_FILE, no_engine
from service.access.audit import Actor
from service.access.caller import Caller
from service.agents import Bases
from service.concurrency import in_thread, repeat
from service.config import GIB, Settings
from service.database import Database
from service.errors import BadRequest, Conflict, StoreUnavailable
from service.objects.adapters import StoredAdapters
from service.registry import records, storage_records
from service.registry.alias_service import AliasService
from service.registry.audit_notes import system_actor
from service.registry.catalog import Catalog, Servable
from service.registry.corruption import CorruptionChecker
from service.registry.counts import RegistryCounts
from service.registry.deletion import Deletion
from service.registry.pins import PinLoader, Pins
from service.registry.probers import Probers
from service.registry.proving import ENGINE_EVIDENCE, Proving
from service.registry.push import Pushes
from service.registry.push_events import PushEvents
from service.registry.readiness import CheckStores, PromptChecker, no_stores
from service.registry.records import AdapterWithVersions
from service.registry.revalidation import Freshness, RevalidationState
from service.registry.rollback import LiveRollback
from service.registry.sources.fetch import SourceFetcher
from service.registry.state import RegistryState, adapter_not_found, require_weights
from service.registry.storage_records import AdapterSpace
from service.registry.verdicts import Verdicts

FORGET_S: Final = 3600.0
"""Seconds between two lists of the object store, for what is no longer counted."""


class Registry:
    """Makes all changes to adapters, versions and aliases, and keeps the catalog up to date.

    Args:
        settings: Bounds of an upload and of a proof.
        database: Open and migrated.
        adapters: Where the files are.
        catalog: What the data path reads.
        bases: The base models, and their engines.
        check_stores: Whether the grounding of a version without weights can be asked for.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        adapters: StoredAdapters,
        catalog: Catalog,
        bases: Bases,
        check_stores: CheckStores = no_stores,
    ) -> None:
        self._settings = settings
        self._database = database
        self._adapters = adapters
        freshness = Freshness([base.fingerprint for base in bases], settings.revalidate_days)
        self._state = RegistryState(database, adapters, catalog, bases, freshness)
        probers = Probers(bases, catalog, timeout_s=settings.proof_timeout_s)
        self._prompts = PromptChecker(check_stores)
        space = AdapterSpace(None if settings.max_adapters_gib is None else int(settings.max_adapters_gib * GIB))
        self._proving = Proving(self._state, probers, self._prompts)
        self._corruption_checker = CorruptionChecker(bases, probers, self._proving.mark_corrupt)
        self.aliases = AliasService(self._state, probers)
        self.fetcher = SourceFetcher(settings)
        self.pushes = Pushes(settings, self._state, self._proving, self._prompts, self.aliases, self.fetcher, space)
        self.push_events = PushEvents()
        self._pin_loaders = [
            PinLoader(catalog, base, agent, probers.of_agent(agent)) for base in bases for agent in base.agents
        ]
        self.pins = Pins(self._state, self._wake_pin_loaders)
        self._live_rollback = LiveRollback(self._state, self.aliases)
        self.verdicts = Verdicts(self._state, self._live_rollback.wake)
        self.deletion = Deletion(self._state)
        self._workers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Clean up after a crash, fill the catalog, and resume unfinished proofs."""
        await self._adapters.open()
        await self._forget_removed()
        await self._state.refresh_all()
        self._state.warn_of_hidden()
        for project, name, version in await self._database.run(records.proving):
            self._proving.spawn(project, name, version, system_actor(project))
        self._workers = [
            asyncio.create_task(self._corruption_checker.work(), name="registry-corruption"),
            *(asyncio.create_task(loader.work(), name="registry-pins") for loader in self._pin_loaders),
            asyncio.create_task(self.deletion.work(), name="registry-expiry"),
            asyncio.create_task(self.fetcher.work(), name="registry-sources"),
        ]
        if self._adapters.copies is not None:
            self._workers.append(
                asyncio.create_task(repeat(self._forget_removed_objects, FORGET_S), name="registry-objects")
            )
        if self._settings.revalidate_rollback:
            self._workers.append(asyncio.create_task(self._live_rollback.work(), name="registry-rollback"))
        self._database.resync.add(self._reload)

    async def _reload(self) -> None:
        """Follow the database, which may have saved what a request that failed has not seen through."""
        await self._state.refresh_all()
        for project, name, version in await self._database.run(records.proving):
            async with self._state.lock(project, name):  # whoever records a proof, or begins one, holds it
                row = await self._database.run(partial(records.present, row=version))
                if row is not None and row.state == "proving":
                    self._proving.spawn(project, name, row, system_actor(project))
        self._wake_pin_loaders()

    async def close(self) -> None:
        """Stop background tasks; the next ``open`` resumes interrupted proofs."""
        with suppress(ValueError):  # it was never opened
            await self._database.resync.remove(self._reload)
        await self.push_events.close()
        await self._proving.close()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self.fetcher.close()

    def _wake_pin_loaders(self) -> None:
        for loader in self._pin_loaders:
            loader.wake()

    @property
    def pinned_digests(self) -> list[str]:
        """Digests that an engine keeps loaded."""
        return [digest for loader in self._pin_loaders for digest in loader.digests_to_keep]

    def similar(self, caller: Caller, name: str) -> str | None:
        """The adapter that the caller may use whose name is most like ``name``; None if none is."""
        return self._state.catalog.similar(caller, name)

    @property
    def counts(self) -> RegistryCounts:
        """RegistryCounts over all projects, as of the last change."""
        return self._state.counts

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
        if row.digest is not None:
            await self._adapters.recheck(row.digest)
        servable = (await self._state.servability([row]))[row.id]
        if self._proving.running(row) is not None:
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
                base = self._state.bases.serving(row.base) or self._state.bases.default
                await self._proving.mark_corrupt(row.digest, base.name)
            raise
        if row.state == "ready" and row.wanted_alias:
            row = replace(row, wanted_alias="")  # it has had its alias: others may have been promoted since
        await self._proving.settle_row(project, name, row, evidence, actor=actor, again=True)
        return await self.version(project, name, row.number)

    def report_failure(self, digest: str, base: str = "") -> None:
        """Report that an engine of ``base`` (its served name; empty: the default) failed under this adapter.

        It is checked in the background; this returns at once.
        """
        self._corruption_checker.add(digest, base)

    async def wait_idle(self) -> None:
        """Return when no proof and no corruption check is running."""
        await self._proving.idle()
        await self._corruption_checker.idle()

    # reading

    async def version(self, project: str, name: str, number: str | int) -> dict[str, Any]:
        """One version in the API's form. Raises NotFound."""
        return await self._state.shown_version(project, name, number)

    async def adapter(self, project: str, name: str, only: RevalidationState | None = None) -> dict[str, Any]:
        """One adapter in the API's form, with its versions; those in the state ``only``. Raises NotFound."""
        adapter = await self._state.adapter(project, name)
        if all(row.state == "rejected" for row in adapter.versions):
            raise adapter_not_found(name)
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
        """Path of the weights file, identical to the upload.

        Raises:
            NotFound: There is no such version, or it has no weights.
            NotInStore, Conflict: The files are lost.
            StoreUnavailable: They have to be fetched, and the object store does not answer.
        """
        _, row = await self._state.version(project, name, number)
        return await self._adapters.path(require_weights(name, row)) / WEIGHTS_FILE

    # deleting

    async def collect(self) -> list[str]:
        """Remove the files that no version uses; returns their digests. None while an engine uses the store.

        Call it only while no engine of this gateway runs: one that had an adapter dies if it no longer finds its files.
        """
        async with self._state.store_lock:
            used = await self._database.run(records.digests_in_use)
            removed = await in_thread(self._collect, used | self._proving.held_digests)
            if self._adapters.copies is not None:
                for digest in removed:
                    self._adapters.copies.dropped(digest)
            await self._forget_removed()
            return removed

    def _collect(self, used: set[str]) -> list[str]:
        store = self._adapters.store
        with no_engine(store.root) as is_alone:
            return store.collect(used) if is_alone else []

    async def _forget_removed(self) -> None:
        """Count no longer what is gone; with an object store that takes requests, and is done in the background."""
        if self._adapters.copies is None:
            stored = await self._adapters.digests()
            await self._database.run(lambda db: storage_records.forget_removed(db, stored))

    async def _forget_removed_objects(self) -> None:
        """Count no longer what `hatrack gc` has removed from the object store."""
        pending = self._proving.held_digests  # counted, and perhaps not there yet
        with suppress(StoreUnavailable):
            stored = await self._adapters.digests() | pending | self._proving.held_digests
            await self._database.run(lambda db: storage_records.forget_removed(db, stored))
