"""A push: receive an upload, inspect and store it, prove it, and make it a version.

With ``wait`` a version is written only once it is proven, so that a refusal leaves nothing behind and a crash leaves
files that no row names, which ``Registry.collect`` removes. Without, the row comes first, and a restart takes up the
proof.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sqlalchemy as sa

from adapters.errors import AdapterError, DiskFull
from adapters.inspect import Inspection, inspect_weights
from adapters.manifest import Manifest, is_same_base
from adapters.names import parse_alias, parse_name
from adapters.proof import Evidence
from adapters.sources import Source
from adapters.store import Staging, digest_of
from service.access.audit import Actor, note
from service.access.caller import Caller
from service.access.records import require_project
from service.agents import ServedBase
from service.concurrency import Locks, in_thread
from service.config import MIB, Settings
from service.config.engine import VLLM_RANKS
from service.errors import NotFound, StoreUnavailable
from service.registry import expiry_records, records, storage_records
from service.registry.alias_service import AliasService
from service.registry.proving import Proving, reference_of
from service.registry.readiness import PromptChecker, SettingsProof
from service.registry.records import VersionDraft, VersionRow
from service.registry.sources.fetch import Fetched, FetchRequest, SourceFetcher
from service.registry.sources.weights import Progress
from service.registry.state import RegistryState, find_equal_version
from service.registry.storage_records import AdapterSpace
from service.registry.upload import ReceivedUpload, require_name_allowed

Receive = Callable[[Callable[[bytes], object]], Awaitable[ReceivedUpload]]
"""Reads an upload: the weights go to the given function, the rest is returned."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """A version in the API's form, with the HTTP status: 200 existed already, 201 new, 202 being proven."""

    version: dict[str, Any]
    status: int


@dataclass(frozen=True, slots=True)
class PushStage:
    """What a push does now: it is fetching a file, or, with ``file`` None, proving the version."""

    file: str | None = None
    bytes: int = 0
    total: int | None = None

    def shown(self) -> dict[str, Any]:
        """The stage in the API's form."""
        if self.file is None:
            return {"stage": "proving"}
        return {"stage": "fetching", "file": self.file, "bytes": self.bytes, "total": self.total}


class Pushes:
    """Makes versions of uploads.

    Args:
        settings: Bounds of an upload.
        proving: Proves versions with weights.
        prompts: Checks those without.
        aliases: Move to a new version, if the upload says so.
        fetcher: Brings the files that an upload only names.
        space: How much of the disk a project's adapters may take.
    """

    def __init__(
        self,
        settings: Settings,
        state: RegistryState,
        proving: Proving,
        prompts: PromptChecker,
        aliases: AliasService,
        fetcher: SourceFetcher,
        space: AdapterSpace,
    ) -> None:
        self._settings = settings
        self._state = state
        self._proving = proving
        self._prompts = prompts
        self._aliases = aliases
        self._fetcher = fetcher
        self._space = space
        self._committing = Locks()

    @property
    def max_weights(self) -> int:
        """Maximum size of a weights file, bytes."""
        return int(self._settings.max_adapter_mib * MIB)

    async def push(self, caller: Caller, receive: Receive, *, wait: bool, actor: Actor) -> PushResult:
        """Receive an upload, inspect and store it, and prove the version.

        Raises:
            Forbidden: The key's globs do not match the adapter's name, whether or not there is one of that name.
            NotFound: There is no such project.
            AdapterError: What is wrong with the adapter, or what the engine does not show of it.
            HatrackError: The upload is not well formed, or the engine cannot be asked.
        """
        await self._state.database.run(lambda db: require_project(db, caller.project))
        staging = self._state.adapters.store.stage(max_weights_bytes=self.max_weights)
        with ExitStack() as held:
            try:
                upload = await receive(staging.weights.write)
                require_name_allowed(caller, upload.name)
                name = self._checked_name(caller.project, upload.name)
                if upload.alias:
                    parse_alias(upload.alias)
                if not upload.has_weights:
                    await self._prompts.check_grounding(upload.settings, caller)
                    draft = upload.draft_without_weights(self._base_of(upload, None).fingerprint)
                    return await self._register(caller.project, name, draft, wait=wait, actor=actor)
                reference_of(upload.metadata)
                base, inspection = await in_thread(self._inspect, staging, upload)
                digest = await self._store(caller.project, staging, inspection.manifest)
                held.callback(self._proving.release, digest)
            finally:
                await in_thread(staging.discard)
            draft = upload.draft(inspection, digest, base.fingerprint)
            return await self._register(caller.project, name, draft, wait=wait, actor=actor)

    async def _store(self, project: str, staging: Staging, manifest: Manifest) -> str:
        """Put an upload into the store, where it stays until it is released; returns its digest.

        Raises:
            TooLarge: The project's adapters would take more of the disk than they may.
            DiskFull, Damaged: As ``Staging.commit``.
            StoreUnavailable: There is an object store, and it does not answer.
        """
        size, digest = staging.weights.bytes_written, digest_of(manifest.canonical(), staging.weights.sha256)
        # one upload after another, so that each counts what the others take; and no collection before it is kept
        async with self._state.store_lock:
            await self._state.database.run(lambda db: self._space.take(db, project, digest, size))
            if self._state.adapters.copies is None:
                await self._commit(staging, manifest, digest)
                self._proving.keep(digest)
                return digest
            self._proving.keep(digest)
        # a slow bucket holds up neither other uploads nor the engine's start, whose collection waits for the lock
        try:
            async with self._committing.hold(digest):
                await self._commit(staging, manifest, digest)
        except BaseException:
            self._proving.release(digest)
            raise
        return digest

    async def _commit(self, staging: Staging, manifest: Manifest, digest: str) -> None:
        """Store what is counted already; it is not counted any more if that fails."""
        try:
            await self._state.adapters.commit(staging, manifest)
        except (AdapterError, StoreUnavailable):
            if not await in_thread(self._state.adapters.exists, digest):
                await self._state.database.run(lambda db: storage_records.forget(db, {digest}))
            raise

    async def push_from(
        self,
        caller: Caller,
        upload: ReceivedUpload,
        source: Source,
        sha256: str | None,
        *,
        wait: bool,
        actor: Actor,
        progress: Callable[[PushStage], object] = lambda _stage: None,
    ) -> PushResult:
        """As ``push``, for files that are fetched first; the version's metadata say from where (``source``).

        Args:
            upload: What was sent beside the source; the caller may use its name.
            source: Covered by the operator's list.
            sha256: What the weights' SHA-256 must be, in hex; None: whatever the source says.

        Raises:
            AdapterError, HatrackError: As ``push`` and ``SourceFetcher.fetch``.
        """
        self._checked_name(caller.project, upload.name)
        if upload.alias:
            parse_alias(upload.alias)
        reference_of(upload.metadata)
        if wait:
            self._proving.require_engine(self._base_of(upload, None))  # it may stop while they come; then they are kept
        else:
            self._proving.require_room()
        arrived: list[Fetched] = []

        def tell(step: Progress) -> None:
            progress(PushStage(step.file, step.bytes, step.total))

        async def receive(write: Callable[[bytes], object]) -> ReceivedUpload:
            request = FetchRequest(caller.project, source, sha256, partial(self._parse_config, upload=upload), tell)
            fetched = await self._fetcher.fetch(request, write)
            arrived.append(fetched)
            await self._state.database.run(lambda db: note(db, actor, "adapter.fetch", upload.name, fetched.record))
            progress(PushStage())
            metadata = {**upload.metadata, "source": fetched.record}
            return replace(upload, config=fetched.config, readme=fetched.readme, metadata=metadata)

        try:
            pushed = await self.push(caller, receive, wait=wait, actor=actor)
        except DiskFull:
            raise  # like an engine that is not ready, it says nothing of the files: the next push needs no download
        except AdapterError:
            await self._forget(arrived)
            raise
        await self._forget(arrived)
        return pushed

    async def _forget(self, arrived: list[Fetched]) -> None:
        for fetched in arrived:
            await self._fetcher.forget(fetched)

    def _checked_name(self, project: str, name: str) -> str:
        """The name of an adapter of the project, new or not. Raises NameInvalid, NameReserved."""
        for_embedder = self._state.catalog.name_for_embedder(project, name)
        return parse_name(name, base_names=self._state.bases.names, embedder_name=for_embedder)

    def _base_of(self, upload: ReceivedUpload, config: bytes | None) -> ServedBase:
        """The base that an upload is for: the one that it names, or that its config does; else the default.

        Raises:
            BadRequest: It names one that is not served.
        """
        bases = self._state.bases
        if upload.base is not None or config is None or len(bases.names) == 1:
            return bases.requested(upload.base, "base")
        trained_on = Manifest.parse(config, max_rank=VLLM_RANKS[-1]).base_model_name
        if trained_on is None:
            return bases.default

        if trained_on in bases.by_name:  # as a job of ours writes it
            return bases.by_name[trained_on]

        def is_meant(base: ServedBase) -> bool:
            return any(is_same_base(trained_on, name) for name in (base.settings.base_label, base.name))

        return next((base for base in bases if is_meant(base)), bases.default)

    def _parse_config(self, config: bytes, upload: ReceivedUpload) -> Manifest:
        """Read an adapter_config.json. Raises ConfigError; BadRequest where the upload names no base of ours."""
        settings = self._base_of(upload, config).settings
        return Manifest.parse(
            config,
            max_rank=settings.engine_max_rank,
            strict_base=self._settings.strict_base,
            base_name=settings.base_label,
        )

    def _inspect(self, staging: Staging, upload: ReceivedUpload) -> tuple[ServedBase, Inspection]:
        base = self._base_of(upload, upload.config)
        manifest = self._parse_config(upload.config, upload)
        staging.weights.finish()
        try:
            inspection = inspect_weights(
                staging.weights.path, manifest, base.description, max_update_ratio=self._settings.max_update_ratio
            )
        except AdapterError as error:
            if upload.base is None and len(self._state.bases.names) > 1:
                others = ", ".join(f"`{name}`" for name in self._state.bases.names if name != base.name)
                error.message += f" It was inspected for the base `{base.name}`; if it is for {others}, send `base`."
            raise
        return base, inspection

    async def _register(self, project: str, name: str, draft: VersionDraft, *, wait: bool, actor: Actor) -> PushResult:
        unmeasured: list[VersionRow] = []
        async with self._state.lock(project, name):
            adapter = await self._state.database.run(lambda db: records.find(db, project, name))
            same = find_equal_version(adapter, draft.digest, draft.settings, draft.base)
            if same is not None and same.expires_at is not None:
                prolong = partial(expiry_records.prolong, version_id=same.id, expires_at=draft.expires_at)
                await self._state.database.run(prolong)
            if adapter is not None and same is not None and await self._state.is_servable(same):
                alias = draft.wanted_alias
                if alias:
                    unmeasured = self._aliases.unmeasured(adapter, alias, [same])
                if not unmeasured:
                    if alias:
                        await self._aliases.follow_push(adapter, alias, same, actor=actor)
                    return PushResult(await self._state.shown_version(project, name, same.number), 200)
            elif not wait:
                return await self._register_later(project, name, draft, same, actor)
        running = self._proving.running(same) if same is not None else None
        if unmeasured or (same is not None and running is not None):
            # outside of the lock: proofs that go first may take minutes
            await self._aliases.measure(unmeasured)
            if running is not None:
                await asyncio.wait({running})
            return await self._register(project, name, draft, wait=wait, actor=actor)
        evidence = await self._proving.ask(project, draft)
        return await self._register_proven(project, name, draft, evidence, actor)

    async def _register_later(
        self, project: str, name: str, draft: VersionDraft, same: VersionRow | None, actor: Actor
    ) -> PushResult:
        if same is None or self._proving.running(same) is None:
            self._proving.require_room()

        def work(db: sa.Connection) -> VersionRow | None:
            if same is None:
                return records.version_by_id(db, records.add_version(db, project, name, draft, actor=actor))
            records.restart_proof(db, same, draft, actor=actor)
            # a version that was ready has had its alias, which others may have by now: only what this push asks counts
            alias = draft.wanted_alias or "" if same.state == "ready" else draft.wanted_alias
            if alias is not None:
                records.want_alias(db, same.id, alias)
            return records.present(db, same)

        row = await self._state.database.run(work)
        if row is None:
            raise NotFound(f"the version of `{name}` was deleted while it was being proven", code="version_not_found")
        await self._state.recount()
        self._proving.spawn(project, name, row, actor)
        return PushResult(await self._state.shown_version(project, name, row.number), 202)

    async def _register_proven(
        self, project: str, name: str, draft: VersionDraft, evidence: Evidence | SettingsProof, actor: Actor
    ) -> PushResult:
        draft = replace(draft, warnings=[*draft.warnings, *evidence.warnings])
        proof = evidence.model_dump(mode="json")
        async with self._state.lock(project, name):
            adapter = await self._state.database.run(lambda db: records.find(db, project, name))
            same = find_equal_version(adapter, draft.digest, draft.settings, draft.base)
            if same is None:
                row = await self._proving.settle(project, name, draft, proof, actor=actor)
            else:
                await self._state.database.run(partial(records.restart_proof, version=same, draft=draft, actor=actor))
                again = replace(same, warnings=draft.warnings, wanted_alias=draft.wanted_alias)
                row = await self._proving.settle(project, name, again, proof, actor=actor, again=True)
        await self._proving.refresh_others(draft.digest, (project, name))
        if row is None:
            raise NotFound(f"the version of `{name}` was deleted while it was being proven", code="version_not_found")
        return PushResult(await self._state.shown_version(project, name, row.number), 201 if same is None else 200)
