"""Proofs as jobs: begun in the background, taken up after a restart, and written down as they end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from adapters.errors import AdapterError, LogprobsNotFinite, NotApplied, PerplexityTooHigh
from adapters.perplexity import REFUSE_RATIO
from adapters.proof import Evidence, Proof
from service.access.audit import Actor, note
from service.agents import ServedBase
from service.errors import Conflict, EngineUnavailable, HatrackError, RateLimited, Unavailable
from service.registry import corrupt_records, pin_records, records
from service.registry.catalog import VersionSettings
from service.registry.probers import Probers
from service.registry.proof import Prober
from service.registry.readiness import PromptChecker, SettingsProof
from service.registry.records import VersionDraft, VersionRow
from service.registry.state import RegistryState

T = TypeVar("T")
ENGINE_FAILURES: Final = 3
"""A version whose proof the engine fails to answer this often (while the base is well) is rejected: it may be what
brings the engine down."""

RETRY_S: Final = 2.0
MAX_PROVING: Final = 256
"""Most versions that wait for their proof at once; they are proven one after another."""

ENGINE_EVIDENCE: Final = (LogprobsNotFinite, NotApplied)
"""What the engine itself shows of an adapter. Of a proof's endings these alone mark the digest, which many projects may
share, as corrupt: where an uploader's `metadata.proof` and the engine differ, the former may be wrong."""

log = logging.getLogger(__name__)


class Proving:
    """Runs proofs and records their results."""

    def __init__(self, state: RegistryState, probers: Probers, prompts: PromptChecker) -> None:
        self._state = state
        self._probers = probers
        self._prompts = prompts
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        """By adapter and number: an id of the database may be another version's by and by."""
        self._held: Counter[str] = Counter()

    # digests that are in the store and perhaps in no row: a collection must not take them

    @property
    def held_digests(self) -> set[str]:
        return set(self._held)

    def keep(self, digest: str) -> None:
        self._held[digest] += 1

    def release(self, digest: str) -> None:
        self._held[digest] -= 1
        if not self._held[digest]:
            del self._held[digest]

    async def ask(
        self, project: str, version: VersionDraft | VersionRow, *, is_served: bool = False
    ) -> Evidence | SettingsProof:
        """Prove a version: that its prompt fits, and of one with weights that the engine applies them.

        The caller records the result.

        Args:
            is_served: It is ready since an earlier proof: whatever its perplexity, it serves on, held back from `live`.

        Raises:
            PerplexityTooHigh: It is REFUSE_RATIO times the base's or more, and the adapter is not served yet.
            ProofInvalid: ``metadata.proof`` is.
            AdapterError, HatrackError: As ``PromptChecker.check`` and ``Prober.prove``.
        """
        settings = VersionSettings.model_validate(version.settings)
        base = self._state.bases.serving(version.base) or self._state.bases.default
        renderer = base.agent_for(version.digest).background
        if version.digest is None:
            return await self._prompts.prove(project, settings, renderer)
        warnings = await self._prompts.check_examples(settings, renderer) if settings.examples else ()
        prober = self._probers.on(base, version.digest)
        evidence = await self._ask_engine(
            prober, version.digest, version.zero_effect, version.metadata, is_served=is_served
        )
        return evidence.model_copy(update={"warnings": (*evidence.warnings, *warnings)})

    async def _ask_engine(
        self, prober: Prober, digest: str, zero_effect: bool, metadata: dict[str, Any], *, is_served: bool
    ) -> Evidence:
        self.keep(digest)
        try:
            evidence = await prober.prove(digest, effect_is_zero=zero_effect, reference=reference_of(metadata))
        finally:
            self.release(digest)
        perplexity = evidence.perplexity
        if perplexity is not None and perplexity.refuses and not is_served:
            raise PerplexityTooHigh(
                f"With this adapter the perplexity of plain text is {perplexity.ratio:,.0f} times the base's "
                f"({perplexity.adapter:.3g} instead of {perplexity.base:.3g}): it is no longer a language model. "
                f"Less than {REFUSE_RATIO:,.0f} times is allowed.",
                param="weights",
                details=perplexity.model_dump(),
            )
        return evidence

    # in the background

    def running(self, version: VersionRow) -> asyncio.Task[None] | None:
        """The task of this version's current proof; None if there is none."""
        return self._tasks.get((version.adapter_id, version.number))

    def require_room(self) -> None:
        """Raise RateLimited if MAX_PROVING versions already wait for their proof."""
        if len(self._tasks) >= MAX_PROVING:
            raise RateLimited(
                f"{MAX_PROVING} versions are already waiting for their proof, the maximum; try again later",
                code="too_many_proving",
            )

    def require_engine(self, base: ServedBase) -> None:
        """Raise EngineUnavailable if no engine of the base can be asked now."""
        self._probers.on(base, None).require_engine()

    def spawn(self, project: str, name: str, version: VersionRow, actor: Actor) -> None:
        """Start a version's proof in the background, unless it runs; the audit notes its result under the actor."""
        if self.running(version) is not None:
            return
        proof = self._finish(project, name, version, actor)
        task = asyncio.create_task(proof, name=f"registry-proof-{version.adapter_id}-{version.number}")
        self._tasks[version.adapter_id, version.number] = task
        task.add_done_callback(lambda done: self._done(name, version, done))

    def _done(self, name: str, version: VersionRow, task: asyncio.Task[None]) -> None:
        if self.running(version) is task:
            del self._tasks[version.adapter_id, version.number]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error(
                "the proof of %s@%d failed unexpectedly; it is repeated at the next start",
                name,
                version.number,
                exc_info=error,
            )

    async def idle(self) -> None:
        """Return once no proof runs in the background."""
        while self._tasks:
            await asyncio.wait(set(self._tasks.values()))

    async def close(self) -> None:
        """Cancel running proofs; their versions stay ``proving``."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self, project: str, name: str, version: VersionRow, actor: Actor) -> None:
        """Prove a version, however long the engine or the database is away, and write how it ended."""
        failures = 0
        while (row := await self._when_available(partial(self._unproven, version))) is not None:
            if self._state.bases.serving(row.base) is None:
                log.warning("the proof of %s@%d waits for its base, which is not served", name, row.number)
                return  # another base would say nothing of it; the next start looks again
            await self._probers.of(row.base, row.digest).wait_for_base(RETRY_S)
            row = await self._when_available(partial(self._unproven, version))
            if row is None:
                return
            try:
                served = row.state == "ready"
                evidence = await self.ask(project, row, is_served=served)
            except AdapterError as error:
                reason = {"code": error.code, "message": error.message, "param": error.param}
            except HatrackError as error:
                if _says_nothing_of(error):
                    await asyncio.sleep(RETRY_S)
                    continue
                failures += 1
                if failures < ENGINE_FAILURES:
                    continue
                reason = {"code": error.code, "message": error.message, "param": error.param}
            else:
                await self._when_available(partial(self._settle_unless_saved, project, name, row, evidence, actor))
                return
            await self._when_available(partial(self._reject, project, name, version, reason, actor))
            return

    async def _when_available(self, step: Callable[[], Awaitable[T]]) -> T:
        """What the step returns once the database answers: an outage must not cost a proof, nor its evidence."""
        while True:
            try:
                return await step()
            except Unavailable as error:
                log.warning("a proof in the background waits for the database: %s", error.message)
                await asyncio.sleep(RETRY_S)

    async def _unproven(self, version: VersionRow) -> VersionRow | None:
        """The version as it is now; None where there is nothing to prove any more."""
        row = await self._state.database.run(lambda db: records.present(db, version))
        return row if row is not None and row.state in ("proving", "ready") else None

    async def _settle_unless_saved(
        self, project: str, name: str, row: VersionRow, evidence: Evidence | SettingsProof, actor: Actor
    ) -> None:
        """``settle_row``, unless an attempt whose answer was lost has done it: the alias may have moved on since."""
        now = await self._unproven(row)
        if now is not None and (now.state, now.proof) == (row.state, row.proof):
            # as it is now: a push of the same may have asked for an alias meanwhile
            await self.settle_row(project, name, now, evidence, actor=actor)

    async def _reject(self, project: str, name: str, version: VersionRow, reason: dict[str, Any], actor: Actor) -> None:
        def work(db: sa.Connection) -> None:
            if records.present(db, version) is not None:
                records.reject(db, version.id, reason, actor=actor)

        async with self._state.lock(project, name):
            await self._state.database.run(work)
            await self._state.recount()

    # how it ended

    async def settle_row(
        self,
        project: str,
        name: str,
        row: VersionRow,
        evidence: Evidence | SettingsProof,
        *,
        actor: Actor,
        again: bool = False,
    ) -> None:
        """``settle`` for a version that already has a row; takes the adapter's lock."""
        warnings = [*row.warnings, *(text for text in evidence.warnings if text not in row.warnings)]
        proof = evidence.model_dump(mode="json")
        async with self._state.lock(project, name):
            await self.settle(project, name, replace(row, warnings=warnings), proof, actor=actor, again=again)
        await self.refresh_others(row.digest, (project, name))

    async def settle(
        self,
        project: str,
        name: str,
        version: VersionDraft | VersionRow,
        proof: dict[str, Any],
        *,
        actor: Actor,
        again: bool = False,
    ) -> VersionRow | None:
        """Record a passed proof in one transaction: ready, alias moved, not corrupt. The caller holds the lock.

        Where pins leave no room for the alias to move, it stays, and the version's warnings say so.

        Args:
            version: A draft is written as a new version.
            again: This was not the version's first proof, which is noted then.

        Returns:
            The version as it is now; None where it was deleted meanwhile.
        """

        def work(db: sa.Connection) -> VersionRow | None:
            if isinstance(version, VersionDraft):
                version_id = records.add_version(db, project, name, version, actor=actor, is_proven=True)
            else:
                version_id = version.id
                if records.present(db, version) is None:
                    return None
                if again:
                    note(db, actor, "version.prove", f"{name}@{version.number}", {"digest": version.digest})
            alias, warnings = version.wanted_alias, version.warnings
            if alias and not records.is_held_back(proof):
                refusal = self._pin_refusal(db, name, version_id, alias, actor)
                if refusal is not None:
                    alias, warnings = "", [*warnings, refusal]
            records.make_ready(db, version_id, proof, warnings, alias, actor=actor)
            if version.digest is not None:
                corrupt_records.clear_corrupt(db, version.digest, self._state.engine_of(version.base))
            return records.version_by_id(db, version_id)

        row = await self._state.database.run(work)
        await self._state.refresh(project, name)
        return row

    def _pin_refusal(self, db: sa.Connection, name: str, version_id: int, alias: str, actor: Actor) -> str | None:
        """Why the alias does not move to a proven version where pins leave its base no room, which is noted."""
        row = records.version_by_id(db, version_id)
        if row is None:
            return None
        try:
            pin_records.require_room_to_move(db, row.adapter_id, alias, row.number, self._state.bases)
        except Conflict as error:
            note(db, actor, "version.hold_back", f"{name}@{row.number}", {"because": "push", "code": error.code})
            return f"`{alias}` did not move here after the proof: {error.message}."
        return None

    async def mark_corrupt(self, digest: str, base: str) -> None:
        """Mark a digest as corrupt on this base: none of its versions there serves until it is proven again."""
        reason, bases = "its probes failed when asked again", self._state.bases
        served = bases.named(base)

        def work(db: sa.Connection) -> None:
            engine = served.fingerprint.digest
            corrupt_records.mark_corrupt(
                db, digest, engine, reason, serves=lambda stored: bases.serving(stored) is served
            )

        await self._state.database.run(work)
        log.warning("the adapter %s is marked corrupt on `%s` until it is proven again", digest[:12], served.name)
        await self.refresh_others(digest, None)

    async def refresh_others(self, digest: str | None, but: tuple[str, str] | None) -> None:
        """Refresh the catalog's entries of all adapters except ``but`` that have a version of this digest."""
        if digest is None:  # without weights there is nothing that two versions share
            return
        with self._state.followed():
            owners = await self._state.database.run(lambda db: records.owners(db, digest))
        for project, name in owners:
            if (project, name) != but:
                async with self._state.lock(project, name):
                    await self._state.refresh(project, name)


def _says_nothing_of(error: HatrackError) -> bool:
    """Whether a proof failed for what is not the version's fault: it waits for its files, for a place in the engine
    that callers hold, or for the database, as for the engine. What the engine dies of may be the version."""
    return isinstance(error, (Unavailable, RateLimited)) and not isinstance(error, EngineUnavailable)


def reference_of(metadata: dict[str, Any]) -> Proof | None:
    """The trainer's measurements in a version's metadata; None if there are none. Raises ProofInvalid."""
    given = metadata.get("proof")
    return None if given is None else Proof.parse(given)
