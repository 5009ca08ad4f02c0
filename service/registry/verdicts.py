"""Verdicts on versions: what an evaluation found, written down beside the engine that it was found on."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa

from service.access.audit import Actor, note
from service.access.caller import Caller, Scope
from service.errors import BadRequest, Conflict, Forbidden
from service.files.holds import hold_for_verdict
from service.files.service import not_found
from service.registry import verdict_records
from service.registry.catalog import Snapshot
from service.registry.revalidation import Revalidation, RevalidationState
from service.registry.schemas import MAX_EVALUATION_BYTES, VerdictRequest
from service.registry.state import RegistryState, verdict_object
from service.registry.verdict_records import PASSED, REVALIDATION, Draft, JudgedVersion, VerdictRow

MAX_BODY_BYTES: Final = 2 * MAX_EVALUATION_BYTES
MAX_VERDICTS: Final = 1000
"""On one version."""
RECOUNT_S: Final = 60.0
"""Versions come of age without anybody changing them: they are counted again after so long, s."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that should be judged again, and what has changed since it was.

    ``fits``: it was judged on the base that is served now; on another one it cannot serve, nor be judged.
    """

    project: str
    name: str
    number: int
    reasons: tuple[str, ...]
    fits: bool = True

    @property
    def version(self) -> str:
        """``name@number``."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How many versions of all projects are in each state (those that were never judged are in none), and how many
    failed ones `live` may answer with."""

    states: Mapping[RevalidationState, int]
    live_failed: int


class Verdicts:
    """Writes verdicts down and gives them out.

    Args:
        state: What the registry's parts share.
        on_failed: Called when a revalidation may have failed a version; returns at once.
    """

    def __init__(self, state: RegistryState, on_failed: Callable[[], None]) -> None:
        self._state = state
        self._on_failed = on_failed
        self._told = 0
        self._standing: tuple[tuple[Snapshot, int], float, Standing] | None = None

    async def record(
        self, caller: Caller, name: str, number: str, body: VerdictRequest, *, actor: Actor
    ) -> dict[str, Any]:
        """Write a verdict on a version down, with the fingerprint of the engine as it is now; in the API's form.

        A job that tells its verdict a second time, because a crash kept the answer from it, gets the first one.

        Raises:
            Forbidden: The caller is neither a job nor an admin.
            NotFound: There is no such version, or no such file in its project.
            Conflict: The version is not ready, or has ``MAX_VERDICTS`` already.
        """
        if not caller.background and not caller.may(Scope.ADMIN):
            raise Forbidden("verdicts are written down by jobs and by admins alone", code="job_key_needed")
        named = body.files.named()
        draft = Draft(
            id=f"verdict-{secrets.token_hex(12)}",
            **body.model_dump(exclude={"files"}),
            files=named,
            base=self._state.base.fingerprint.model_dump(),
            key_id=caller.key_id,
        )
        async with self._state.lock(caller.project, name):
            holding, row = await self._state.version(caller.project, name, number)
            target = f"{holding.adapter.name}@{row.number}"
            if row.state != "ready":
                raise Conflict(f"the version `{target}` is {row.state}, not ready", code="version_not_ready")

            def work(db: sa.Connection) -> VerdictRow:
                told = verdict_records.page(db, row.id, None, 1) if caller.background else None
                if told and _is_told_again(told[0], draft):
                    return told[0]
                if verdict_records.count(db, row.id) >= MAX_VERDICTS:
                    raise Conflict(f"the version `{target}` has {MAX_VERDICTS} verdicts", code="too_many_verdicts")
                fields = {f"files.{param}": file_id for param, file_id in named.items()}
                missing = hold_for_verdict(db, caller, target, fields)
                if missing is not None:
                    raise not_found(missing[1], missing[0])
                added = verdict_records.add(db, row.id, draft)
                detail = {"id": added.id, "verdict": added.verdict, "kind": added.kind}
                if added.evaluation_id is not None:
                    detail["evaluation"] = added.evaluation_id
                note(db, actor, "version.verdict", target, detail)
                return added

            added = await self._state.database.run(work)
        self._told += 1
        if added.kind == REVALIDATION and added.verdict != PASSED:
            self._on_failed()
        return {**verdict_object(holding, row, added), "evaluation": draft.evaluation}

    async def history(self, project: str, name: str, number: str, after: str | None, limit: int) -> dict[str, Any]:
        """A page of a version's verdicts, newest first.

        Raises:
            NotFound: There is no such version.
            BadRequest: ``after`` names none of its verdicts.
        """
        holding, row = await self._state.version(project, name, number)

        def work(db: sa.Connection) -> tuple[list[VerdictRow], dict[int, dict[str, Any] | None]]:
            found = verdict_records.page(db, row.id, after, limit + 1)
            if found is None:
                raise BadRequest("`after` names no verdict on this version", param="after")
            return found, verdict_records.evaluations(db, [verdict.seq for verdict in found[:limit]])

        found, bodies = await self._state.database.run(work)
        data = [
            {**verdict_object(holding, row, verdict), "evaluation": bodies[verdict.seq]} for verdict in found[:limit]
        ]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }

    async def standing(self) -> Standing:
        """How many versions of all projects are in each state; counted anew after each change, and with the time."""
        known, now = self._standing, time.monotonic()
        snapshot, told = self._state.catalog.snapshot, self._told
        if known is not None and known[0][0] is snapshot and known[0][1] == told and now - known[1] < RECOUNT_S:
            return known[2]
        freshness = self._state.freshness
        old_before = freshness.old_before()

        def work(db: sa.Connection) -> tuple[list[verdict_records.Tally], int]:
            return verdict_records.tallies(db, old_before), len(verdict_records.live_failures(db))

        tallies, live_failed = await self._state.database.run(work)
        found = Standing(MappingProxyType(freshness.count(tallies)), live_failed)
        self._standing = ((snapshot, told), now, found)
        return found

    def names(self, db: sa.Connection, project: str, wanted: RevalidationState) -> set[str]:
        """The project's adapters that have a ready version in that state."""
        return {one.name for one in verdict_records.ready(db, project) if self._worth(one).state is wanted}

    def _worth(self, one: JudgedVersion) -> Revalidation:
        return self._state.freshness.worth(one.base, one.created_at, failed=one.failed, unconfirmed=one.unconfirmed)

    # judging again

    async def wanted(self, project: str | None, *, every: bool = False) -> list[Wanted]:
        """The ready versions of a project (None: of all) that should be judged again: what `live` may answer with
        first, then the oldest verdict first.

        Args:
            every: All that were ever judged, also those of which nothing has changed.
        """
        judged = await self._state.database.run(lambda db: verdict_records.ready(db, project))
        found = [(one, self._worth(one)) for one in judged]
        return [
            Wanted(one.project, one.name, one.number, worth.reasons, self._state.freshness.fits(one.base))
            for one, worth in found
            if every or worth.wanted
        ]

    async def evaluation(self, project: str, name: str, number: int | str) -> tuple[int, dict[str, Any]]:
        """A version's number, and the body that asks for its latest evaluation again.

        Raises:
            NotFound: There is no such version.
            Conflict: It cannot serve now, was never judged, or nobody said how to judge it again.
        """
        holding, row = await self._state.version(project, name, number)
        await self._state.demand_servable(name, row)
        version = f"{name}@{row.number}"
        if row.id not in await self._state.judged([holding]):
            raise Conflict(f"the version `{version}` was never judged: evaluate it first", code="never_judged")
        body = await self._state.database.run(lambda db: verdict_records.last_evaluation(db, row.id))
        if body is None:
            raise Conflict(f"no verdict on `{version}` says how to come to it again", code="nothing_to_repeat")
        return row.number, body


def _is_told_again(latest: VerdictRow, draft: Draft) -> bool:
    """Whether the verdict is the latest one once more: each job has a key of its own, and judges once."""
    same = ("kind", "verdict", "sentence", "metric", "examples", "evaluation_id", "files", "base", "key_id", "rule")
    return all(getattr(latest, name) == getattr(draft, name) for name in same)
