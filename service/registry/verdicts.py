"""Records evaluation verdicts on versions, with the fingerprint of the engine they were reached on."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa

from service.access.audit import Actor, note
from service.access.caller import Caller, Scope
from service.errors import BadRequest, Conflict, Forbidden
from service.files.holds import hold_for_verdict
from service.files.service import not_found
from service.registry import verdict_records
from service.registry.catalog import CatalogSnapshot
from service.registry.revalidation import AGE, Revalidation, RevalidationState
from service.registry.schemas import MAX_EVALUATION_BYTES, VerdictRequest
from service.registry.state import RegistryState, verdict_object
from service.registry.verdict_flags import PASSED, REVALIDATION
from service.registry.verdict_records import VerdictDraft, VerdictRow, VersionVerdict

MAX_BODY_BYTES: Final = 2 * MAX_EVALUATION_BYTES
MAX_VERDICTS: Final = 1000
"""Maximum number of verdicts on one version."""
RECOUNT_S: Final = 60.0
"""Verdicts become old without any change, so the summary is recomputed after this long, s."""


@dataclass(frozen=True, slots=True)
class RevalidationCandidate:
    """A version that should be revalidated, and what has changed since its last verdict.

    ``is_same_base``: it was judged on the base that is served now; otherwise it can neither serve nor be judged.
    ``only_aged``: nothing but time has passed since its latest verdict.
    """

    project: str
    name: str
    number: int
    reasons: tuple[str, ...]
    is_same_base: bool = True
    only_aged: bool = False

    @property
    def version(self) -> str:
        """``name@number``."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class VerdictSummary:
    """Number of versions of all projects in each state (never judged ones are left out), and of failed versions that
    `live` points to."""

    states: Mapping[RevalidationState, int]
    live_failed: int


class Verdicts:
    """Records verdicts and answers queries about them.

    Args:
        state: What the registry's parts share.
        on_failed: Called when a revalidation may have failed a version; returns at once.
    """

    def __init__(self, state: RegistryState, on_failed: Callable[[], None]) -> None:
        self._state = state
        self._on_failed = on_failed
        self._writes = 0
        self._summary: tuple[tuple[CatalogSnapshot, int], float, VerdictSummary] | None = None

    async def record(
        self, caller: Caller, name: str, number: str, body: VerdictRequest, *, actor: Actor
    ) -> dict[str, Any]:
        """Record a verdict on a version with the engine's current fingerprint; returns it in the API's form.

        Idempotent for jobs: a job that repeats its verdict after a crash gets the recorded one.

        Raises:
            Forbidden: The caller is neither a job nor an admin.
            NotFound: There is no such version, or no such file in its project.
            Conflict: The version is not ready, or has ``MAX_VERDICTS`` already.
            BadRequest: ``compared_with`` is not a verdict on this version.
        """
        if not caller.background and not caller.may(Scope.ADMIN):
            raise Forbidden(
                "only jobs and admins may record verdicts; use a job's key or a key with the scope `admin`",
                code="job_key_needed",
            )
        draft = VerdictDraft(
            id=f"verdict-{secrets.token_hex(12)}",
            **body.model_dump(exclude={"files"}),
            files=body.files.named(),
            base={},
            key_id=caller.key_id,
        )
        async with self._state.lock(caller.project, name):
            adapter, row = await self._state.version(caller.project, name, number)
            base = self._state.bases.serving(row.base)
            draft = replace(draft, base=row.base if base is None else base.fingerprint.model_dump())
            target = f"{adapter.row.name}@{row.number}"
            if row.state != "ready":
                raise Conflict(
                    f"the version `{target}` is `{row.state}`; only `ready` versions can have verdicts",
                    code="version_not_ready",
                )
            added = await self._state.database.run(lambda db: _record(db, caller, actor, row.id, target, draft))
        self._writes += 1
        if added.kind == REVALIDATION and added.verdict != PASSED:
            self._on_failed()
        return {**verdict_object(adapter, row, added), "evaluation": draft.evaluation}

    async def history(self, project: str, name: str, number: str, after: str | None, limit: int) -> dict[str, Any]:
        """A page of a version's verdicts, newest first.

        Raises:
            NotFound: There is no such version.
            BadRequest: ``after`` is not the id of one of its verdicts.
        """
        adapter, row = await self._state.version(project, name, number)

        def work(db: sa.Connection) -> tuple[list[VerdictRow], dict[int, dict[str, Any] | None]]:
            rows = verdict_records.page(db, row.id, after, limit + 1)
            if rows is None:
                raise BadRequest("`after` must be the id of a verdict on this version", param="after")
            return rows, verdict_records.evaluations(db, [verdict.seq for verdict in rows[:limit]])

        rows, bodies = await self._state.database.run(work)
        data = [
            {**verdict_object(adapter, row, verdict), "evaluation": bodies[verdict.seq]} for verdict in rows[:limit]
        ]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(rows) > limit,
        }

    async def standing(self) -> VerdictSummary:
        """The summary over all projects; cached until something changes, at most RECOUNT_S."""
        cached, now = self._summary, time.monotonic()
        snapshot, writes = self._state.catalog.snapshot, self._writes
        if cached is not None and cached[0][0] is snapshot and cached[0][1] == writes and now - cached[1] < RECOUNT_S:
            return cached[2]
        freshness = self._state.freshness
        old_before = freshness.old_before()

        def work(db: sa.Connection) -> tuple[list[verdict_records.VerdictCount], int]:
            return verdict_records.tallies(db, old_before), len(verdict_records.live_failures(db))

        tallies, live_failed = await self._state.database.run(work)
        summary = VerdictSummary(MappingProxyType(freshness.count(tallies)), live_failed)
        self._summary = ((snapshot, writes), now, summary)
        return summary

    def names(self, db: sa.Connection, project: str, state: RevalidationState) -> set[str]:
        """The project's adapters that have a ready version in ``state``."""
        return {row.name for row in verdict_records.ready(db, project) if self._revalidation(row).state is state}

    def _revalidation(self, row: VersionVerdict) -> Revalidation:
        freshness = self._state.freshness
        return freshness.revalidation_of(
            row.base, row.latest_base, row.created_at, failed=row.failed, unconfirmed=row.unconfirmed
        )

    # revalidation

    async def revalidation_candidates(self, project: str | None, *, every: bool = False) -> list[RevalidationCandidate]:
        """The ready versions of a project (None: of all) that should be revalidated: those that `live` points to
        first, then by the age of their verdict, oldest first.

        Args:
            every: Include every version with a verdict, even if nothing has changed.
        """
        rows = await self._state.database.run(lambda db: verdict_records.ready(db, project))
        judged = [(row, self._revalidation(row)) for row in rows]
        return [
            RevalidationCandidate(
                row.project,
                row.name,
                row.number,
                revalidation.reasons,
                is_same_base=self._state.freshness.is_same_base(row.base),
                only_aged=revalidation.news == (AGE,),
            )
            for row, revalidation in judged
            if every or revalidation.is_useful
        ]

    async def aged_per_round(self, every_s: float) -> int:
        """How many versions that are due for their age alone the timer may revalidate in a round that begins now.

        All versions get their turn within the age limit, at the same pace: versions that were promoted long ago are
        spread over that time, and a restart brings no extra round.

        Args:
            every_s: Interval between rounds, s.
        """
        freshness, since = self._state.freshness, int(time.time() - every_s)
        rows = await self._state.database.run(lambda db: verdict_records.ready(db, None))
        versions = sum(freshness.is_same_base(row.base) for row in rows)
        done = await self._state.database.run(lambda db: verdict_records.revalidated_since(db, since))
        return max(0, math.ceil(versions * min(1.0, every_s / freshness.age_s)) - done)

    async def evaluation(self, project: str, name: str, number: int | str) -> tuple[int, dict[str, Any]]:
        """A version's number, and the request body that repeats its latest evaluation.

        Raises:
            NotFound: There is no such version.
            Conflict: The version cannot serve now, has no verdict, or has none with an evaluation to repeat.
        """
        adapter, row = await self._state.version(project, name, number)
        await self._state.require_servable(name, row)
        version = f"{name}@{row.number}"
        if row.id not in await self._state.verdict_status([adapter]):
            raise Conflict(f"the version `{version}` has no verdict yet; evaluate it first", code="never_judged")
        body = await self._state.database.run(lambda db: verdict_records.last_evaluation(db, row.id))
        if body is None:
            raise Conflict(
                f"no verdict on `{version}` has an evaluation that can be repeated; evaluate the version",
                code="nothing_to_repeat",
            )
        return row.number, body


def _require_compared(db: sa.Connection, version_id: int, target: str, compared_with: str | None) -> None:
    """Raise BadRequest unless ``compared_with`` is None or the id of a verdict on the version."""
    if compared_with is not None and verdict_records.page(db, version_id, compared_with, 0) is None:
        raise BadRequest(
            f"`compared_with` must be the id of a verdict on `{target}`; got {compared_with!r}", param="compared_with"
        )


def _record(
    db: sa.Connection, caller: Caller, actor: Actor, version_id: int, target: str, draft: VerdictDraft
) -> VerdictRow:
    """Add a verdict, or return the job's own that is recorded already. ``target``: the version's ``name@number``."""
    latest = verdict_records.page(db, version_id, None, 1) if caller.background else None
    if latest and _is_repeated(latest[0], draft):
        return latest[0]
    if verdict_records.count(db, version_id) >= MAX_VERDICTS:
        raise Conflict(
            f"the version `{target}` already has {MAX_VERDICTS} verdicts, the maximum", code="too_many_verdicts"
        )
    _require_compared(db, version_id, target, draft.compared_with)
    missing = hold_for_verdict(
        db, caller, target, {f"files.{param}": file_id for param, file_id in draft.files.items()}
    )
    if missing is not None:
        raise not_found(missing[1], missing[0])
    added = verdict_records.add(db, version_id, draft)
    detail = {"id": added.id, "verdict": added.verdict, "kind": added.kind}
    if added.evaluation_id is not None:
        detail["evaluation"] = added.evaluation_id
    note(db, actor, "version.verdict", target, detail)
    return added


def _is_repeated(latest: VerdictRow, draft: VerdictDraft) -> bool:
    """Whether the verdict repeats the latest one: each job has its own key and judges once."""
    stored = set(VerdictDraft.__dataclass_fields__) - {"id", "evaluation"}
    return all(getattr(latest, name) == getattr(draft, name) for name in stored)
