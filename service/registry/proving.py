"""Proofs as jobs: begun in the background, taken up after a restart, and written down as they end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa

from adapters.errors import AdapterError
from adapters.proof import Evidence, Proof
from service.access.audit import Actor, note
from service.errors import HatrackError, RateLimited
from service.registry import records
from service.registry.proof import Prober
from service.registry.records import Draft, VersionRow
from service.registry.state import RegistryState

ENGINE_FAILURES: Final = 3
"""A version whose proof the engine fails to answer this often (while the base is well) is rejected: it may be what
brings the engine down."""

RETRY_S: Final = 2.0
MAX_PROVING: Final = 256
"""Most versions that wait for their proof at once; they are proven one after another."""

log = logging.getLogger(__name__)


class Proving:
    """Runs proofs and writes how they end."""

    def __init__(self, state: RegistryState, prober: Prober) -> None:
        self._state = state
        self._prober = prober
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_hand: Counter[str] = Counter()

    # digests that are in the store and perhaps in no row: a collection must not take them

    @property
    def in_hand(self) -> set[str]:
        return set(self._in_hand)

    def keep(self, digest: str) -> None:
        self._in_hand[digest] += 1

    def release(self, digest: str) -> None:
        self._in_hand[digest] -= 1
        if not self._in_hand[digest]:
            del self._in_hand[digest]

    async def ask(self, digest: str, zero_effect: bool, metadata: dict[str, Any]) -> Evidence:
        """Prove an adapter; raises as ``Prober.prove``, and ProofInvalid for ``metadata.proof``."""
        self.keep(digest)
        try:
            return await self._prober.prove(digest, effect_is_zero=zero_effect, reference=reference_of(metadata))
        finally:
            self.release(digest)

    # in the background

    def running(self, version_id: int) -> asyncio.Task[None] | None:
        """The proof of this version that is going on, if any."""
        return self._tasks.get(version_id)

    def demand_room(self) -> None:
        """Raise RateLimited where as many versions wait for their proof as may."""
        if len(self._tasks) >= MAX_PROVING:
            raise RateLimited(f"{MAX_PROVING} versions wait for their proof already", code="too_many_proving")

    def spawn(self, project: str, name: str, version_id: int, actor: Actor) -> None:
        """Begin a version's proof in the background; how it ends is noted as the actor's."""
        proof = self._finish(project, name, version_id, actor)
        task = asyncio.create_task(proof, name=f"registry-proof-{version_id}")
        self._tasks[version_id] = task
        task.add_done_callback(lambda done: self._done(version_id, done))

    def _done(self, version_id: int, task: asyncio.Task[None]) -> None:
        if self._tasks.get(version_id) is task:
            del self._tasks[version_id]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a proof (row %d) broke off; it is taken up at the next start", version_id, exc_info=error)

    async def idle(self) -> None:
        """Return when no proof runs in the background."""
        while self._tasks:
            await asyncio.wait(set(self._tasks.values()))

    async def close(self) -> None:
        """Cut the proofs off; their versions stay ``proving``."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self, project: str, name: str, version_id: int, actor: Actor) -> None:
        """Prove a version, however long the engine is away, and write how it ended."""
        reason: dict[str, Any] = {}
        for _ in range(ENGINE_FAILURES):
            await self._prober.wait_for_base(RETRY_S)
            row = await self._state.database.run(lambda db: records.version_by_id(db, version_id))
            if row is None or row.state not in ("proving", "ready"):
                return
            try:
                evidence = await self.ask(row.digest, row.zero_effect, row.metadata)
            except AdapterError as error:
                reason = {"code": error.code, "message": error.message, "param": error.param}
                break
            except HatrackError as error:
                reason = {"code": error.code, "message": error.message, "param": error.param}
            else:
                await self.settle_row(project, name, row, evidence, actor=actor)
                return
        async with self._state.lock(project, name):
            await self._state.database.run(lambda db: records.reject(db, version_id, reason, actor=actor))
            await self._state.recount()

    # how it ended

    async def settle_row(
        self, project: str, name: str, row: VersionRow, evidence: Evidence, *, actor: Actor, again: bool = False
    ) -> None:
        """``settle`` for a version that is written already; takes the lock."""
        warnings = [*row.warnings, *(text for text in evidence.warnings if text not in row.warnings)]
        said = replace(row, warnings=warnings)
        proof = evidence.model_dump(mode="json")
        async with self._state.lock(project, name):
            await self.settle(project, name, row.id, said, proof, actor=actor, again=row if again else None)
        await self.refresh_others(row.digest, (project, name))

    async def settle(
        self,
        project: str,
        name: str,
        version_id: int,
        said: Draft | VersionRow,
        proof: dict[str, Any],
        *,
        actor: Actor,
        again: VersionRow | None = None,
    ) -> None:
        """Proven: ready, alias moved, no longer corrupt, in one transaction. The caller holds the adapter's lock.

        Args:
            again: The version, where this was not its first proof, which is noted then.
        """

        def work(db: sa.Connection) -> None:
            if again is not None:
                note(db, actor, "version.prove", f"{name}@{again.number}", {"digest": again.digest})
            records.make_ready(db, version_id, proof, said.warnings, said.wanted_alias, actor=actor)
            records.clear_corrupt(db, said.digest, self._state.engine)

        await self._state.database.run(work)
        await self._state.refresh(project, name)

    async def convict(self, digest: str) -> None:
        """The digest is corrupt on this engine until it is proven again: no version of it can serve."""
        reason = "its probes failed when asked again"
        await self._state.database.run(lambda db: records.mark_corrupt(db, digest, self._state.engine, reason))
        log.warning("adapter %s is corrupt on this engine until it is proven again", digest[:12])
        await self.refresh_others(digest, None)

    async def refresh_others(self, digest: str, but: tuple[str, str] | None) -> None:
        """Bring all adapters (but one) that have a version of this digest up to date in the catalog."""
        for project, name in await self._state.database.run(lambda db: records.owners(db, digest)):
            if (project, name) != but:
                async with self._state.lock(project, name):
                    await self._state.refresh(project, name)


def reference_of(metadata: dict[str, Any]) -> Proof | None:
    """The trainer's measurements in a version's metadata. Raises ProofInvalid."""
    given = metadata.get("proof")
    return None if given is None else Proof.parse(given)
