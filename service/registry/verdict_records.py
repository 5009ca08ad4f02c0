"""The SQL of verdicts: a history for each version that is only ever added to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS
from service.registry import alias_records
from service.registry.split import versions_of
from service.registry.tables import adapters, aliases, verdicts, versions
from service.registry.verdict_flags import (
    FAIL,
    PASSED,
    REVALIDATION,
    conclusive_base,
    is_conclusive,
    is_failed,
    is_unconfirmed,
)

SCORES: Final = "scores"
"""The file of a verdict with its scores question by question."""


@dataclass(frozen=True, slots=True)
class VerdictDraft:
    """A verdict to be recorded.

    Attributes:
        files: Ids of the project's files by what they are: ``report``, ``page``, ``held_out``, ``scores``.
        evaluation: The body that asks for the same evaluation again, or None.
        base: The fingerprint of the base as it was served meanwhile.
        rule: The version of the rule that it was reached by.
        compared_with: Of a revalidation: the id of the verdict that it was compared with question by question.
        holds: Whether that verdict holds; None if that is not shown.
    """

    id: str
    kind: str
    verdict: str
    sentence: str
    metric: str
    examples: int
    evaluation_id: str | None
    files: Mapping[str, str]
    evaluation: dict[str, Any] | None
    base: dict[str, Any]
    key_id: str
    rule: int
    compared_with: str | None = None
    holds: bool | None = None


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """A verdict as it is stored, without its evaluation's body (see ``evaluations``)."""

    seq: int
    id: str
    version_id: int
    kind: str
    verdict: str
    sentence: str
    metric: str
    examples: int
    evaluation_id: str | None
    files: dict[str, str]
    base: dict[str, Any]
    key_id: str
    created_at: int
    rule: int
    compared_with: str | None = None
    holds: bool | None = None


@dataclass(frozen=True, slots=True)
class VerdictStatus:
    """A version's latest verdict, and what its verdicts say together (see `verdict_flags`).

    Attributes:
        base: The fingerprint of the base at the latest verdict that is not inconclusive.
        failed: Whether its latest revalidation failed it.
        unconfirmed: Whether its pass is by an older rule and was not confirmed.
    """

    latest: VerdictRow
    base: dict[str, Any]
    failed: bool
    unconfirmed: bool


@dataclass(frozen=True, slots=True)
class VersionVerdict:
    """A ready version and what its verdicts say together, as in `VerdictStatus`.

    ``latest_base``, ``created_at``: the base and the time (Unix seconds) of its latest verdict of any kind.
    """

    project: str
    name: str
    number: int
    base: dict[str, Any]
    latest_base: dict[str, Any]
    created_at: int
    failed: bool
    unconfirmed: bool


@dataclass(frozen=True, slots=True)
class VerdictCount:
    """How many ready versions of all projects were judged on one base, on one side of an age, with one result."""

    base: dict[str, Any]
    old: bool
    failed: bool
    unconfirmed: bool
    versions: int


@dataclass(frozen=True, slots=True)
class FailedLiveVersion:
    """A version that ``live`` may answer with and that its latest revalidation failed; times are Unix seconds."""

    project: str
    name: str
    number: int
    failed_at: int
    moved_at: int
    """When ``live`` was last pointed anywhere."""


_SHOWN = [verdicts.c[name] for name in VerdictRow.__dataclass_fields__]


def add(db: sa.Connection, version_id: int, draft: VerdictDraft) -> VerdictRow:
    """Insert a version's verdict, which becomes its latest."""
    values = {name: getattr(draft, name) for name in VerdictDraft.__dataclass_fields__} | {"files": dict(draft.files)}
    row = db.execute(
        verdicts.insert().values(version_id=version_id, created_at=alias_records.now(), **values).returning(*_SHOWN)
    ).one()
    return _verdict(row)


def count(db: sa.Connection, version_id: int) -> int:
    """Number of verdicts on a version."""
    return int(db.scalar(sa.select(sa.func.count()).where(verdicts.c.version_id == version_id)) or 0)


def page(db: sa.Connection, version_id: int, after: str | None, limit: int) -> list[VerdictRow] | None:
    """Up to ``limit`` verdicts on a version, newest first; None if ``after`` is not the id of one of them."""
    chosen = sa.select(*_SHOWN).where(verdicts.c.version_id == version_id).order_by(verdicts.c.seq.desc()).limit(limit)
    if after is not None:
        cursor = db.scalar(sa.select(verdicts.c.seq).where(verdicts.c.version_id == version_id, verdicts.c.id == after))
        if cursor is None:
            return None
        chosen = chosen.where(verdicts.c.seq < cursor)
    return [_verdict(row) for row in db.execute(chosen)]


def evaluations(db: sa.Connection, seqs: Collection[int]) -> dict[int, dict[str, Any] | None]:
    """The request bodies that repeat the verdicts' evaluations, by the verdicts' ``seq``."""
    rows = db.execute(sa.select(verdicts.c.seq, verdicts.c.evaluation).where(verdicts.c.seq.in_(seqs)))
    return {row.seq: row.evaluation for row in rows}


def verdict_status(db: sa.Connection, adapter_ids: Collection[int]) -> dict[int, VerdictStatus]:
    """The verdict status of these adapters' versions, by row id; versions without a verdict are left out."""
    mine = sa.select(versions.c.id).where(versions.c.adapter_id.in_(adapter_ids)).scalar_subquery()
    chosen = sa.select(*_SHOWN, *_flags()).where(verdicts.c.version_id.in_(mine), _is_latest())
    return {row.version_id: _judged(row) for row in db.execute(chosen)}


def ready(db: sa.Connection, project: str | None = None) -> list[VersionVerdict]:
    """The ready versions that were judged, of one project or of all: first those that ``live`` may answer with, of
    these and of the others the oldest verdict first."""
    chosen = (
        sa.select(
            adapters.c.project,
            adapters.c.name,
            versions.c.number,
            verdicts.c.base,
            verdicts.c.created_at,
            *_flags(),
            aliases.c.version,
            aliases.c.split,
        )
        .select_from(verdicts)
        .join(versions, versions.c.id == verdicts.c.version_id)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .outerjoin(aliases, sa.and_(aliases.c.adapter_id == adapters.c.id, aliases.c.alias == DEFAULT_ALIAS))
        .where(versions.c.state == "ready", _is_latest())
        .order_by(verdicts.c.seq)
    )
    if project is not None:
        chosen = chosen.where(adapters.c.project == project)
    rows = sorted(db.execute(chosen), key=lambda row: not _may_answer(row))
    return [
        VersionVerdict(
            row.project,
            row.name,
            row.number,
            row.conclusive_base,
            row.base,
            row.created_at,
            bool(row.failed),
            bool(row.unconfirmed),
        )
        for row in rows
    ]


def last_evaluation(db: sa.Connection, version_id: int) -> dict[str, Any] | None:
    """The request body of the version's latest evaluation that can be repeated; None if there is none."""
    evaluation: dict[str, Any] | None = db.scalar(
        sa.select(verdicts.c.evaluation)
        .where(verdicts.c.version_id == version_id, verdicts.c.evaluation.is_not(None))
        .order_by(verdicts.c.seq.desc())
        .limit(1)
    )
    return evaluation


def comparable(db: sa.Connection, version_id: int, held_out: str, metric: str) -> VerdictRow | None:
    """The verdict that a revalidation of a version is compared with, question by question; None if there is none.

    It has its scores stored, is on the same held-out file and metric, and did not fail. The latest one that is not a
    revalidation is preferred: were each revalidation compared with the one before, small losses would add up unseen.
    Otherwise it is the oldest revalidation since then. One that found no pass serves only while the version is not
    failed, because a version that only stays as it was at its failure must not be cleared by that.
    """
    status = _status_of(db, version_id)
    chosen = sa.select(*_SHOWN).where(
        verdicts.c.version_id == version_id,
        verdicts.c.metric == metric,
        verdicts.c.verdict != FAIL,
        verdicts.c.compared_with.is_(None),
    )
    oldest: VerdictRow | None = None
    for verdict in (_verdict(row) for row in db.execute(chosen.order_by(verdicts.c.seq.desc()))):
        if verdict.files.get("held_out") != held_out or SCORES not in verdict.files:
            continue
        if verdict.kind != REVALIDATION:
            return verdict
        if verdict.verdict == PASSED or not (status is not None and status.failed):
            oldest = verdict
    return oldest


def _status_of(db: sa.Connection, version_id: int) -> VerdictStatus | None:
    row = db.execute(sa.select(*_SHOWN, *_flags()).where(verdicts.c.version_id == version_id, _is_latest())).first()
    return None if row is None else _judged(row)


def revalidated_since(db: sa.Connection, since: int) -> int:
    """The number of revalidations recorded at or after a time (Unix seconds), over all projects."""
    chosen = sa.select(sa.func.count()).where(verdicts.c.kind == REVALIDATION, verdicts.c.created_at >= since)
    return int(db.scalar(chosen) or 0)


def tallies(db: sa.Connection, old_before: int) -> list[VerdictCount]:
    """The judged ready versions of all projects, counted by base, age and result: a handful of rows.

    Args:
        old_before: Unix seconds; a verdict from before that is old.
    """
    old = (verdicts.c.created_at < old_before).label("old")
    flags = _flags()
    chosen = (
        sa.select(old, *flags, sa.func.count().label("versions"))
        .join(versions, versions.c.id == verdicts.c.version_id)
        .where(_is_latest(), versions.c.state == "ready")
        .group_by(old, *flags)
    )
    return [
        VerdictCount(row.conclusive_base, bool(row.old), bool(row.failed), bool(row.unconfirmed), int(row.versions))
        for row in db.execute(chosen)
    ]


def live_failures(db: sa.Connection) -> list[FailedLiveVersion]:
    """The versions of all projects that ``live`` may answer with and that their latest revalidation failed."""
    chosen = (
        sa.select(
            adapters.c.project,
            adapters.c.name,
            versions.c.number,
            verdicts.c.created_at,
            aliases.c.version,
            aliases.c.split,
            aliases.c.updated_at,
            is_failed().label("failed"),  # among the conditions it would be looked at for all that there ever were
        )
        .select_from(verdicts)
        .join(versions, versions.c.id == verdicts.c.version_id)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .join(aliases, sa.and_(aliases.c.adapter_id == adapters.c.id, aliases.c.alias == DEFAULT_ALIAS))
        .where(verdicts.c.kind == REVALIDATION, _is_latest(REVALIDATION))
        .where(versions.c.state == "ready")
        .order_by(adapters.c.id, versions.c.number)
    )
    failures = []
    for row in db.execute(chosen):
        if row.failed and _may_answer(row):
            failures.append(FailedLiveVersion(row.project, row.name, row.number, row.created_at, row.updated_at))
    return failures


def _may_answer(row: Any) -> bool:
    """Whether the alias in a row points, alone or as a part of a split, at the version in it."""
    target = alias_records.target_of(row)
    return target is not None and row.number in versions_of(target)


def forget(db: sa.Connection, where: sa.ColumnElement[bool]) -> None:
    """Delete the verdicts on the versions that ``where`` selects."""
    db.execute(verdicts.delete().where(verdicts.c.version_id.in_(sa.select(versions.c.id).where(where))))


def _is_latest(kind: str | None = None) -> sa.ColumnElement[bool]:
    """Of the latest verdict on its version; of that kind, where one is given, and then of the conclusive ones."""
    same_version = verdicts.alias("others")
    newest = sa.select(sa.func.max(same_version.c.seq)).where(same_version.c.version_id == verdicts.c.version_id)
    if kind is not None:
        newest = newest.where(same_version.c.kind == kind, is_conclusive(same_version))
    return verdicts.c.seq == newest.correlate(verdicts).scalar_subquery()


def _judged(row: sa.Row[*tuple[Any, ...]]) -> VerdictStatus:
    values = {name: row._mapping[name] for name in VerdictRow.__dataclass_fields__}
    flags = row._mapping
    return VerdictStatus(
        VerdictRow(**values), flags["conclusive_base"], bool(flags["failed"]), bool(flags["unconfirmed"])
    )


def _flags() -> tuple[sa.ColumnElement[Any], ...]:
    """What the verdicts of a verdict's version say together, for a query over verdicts."""
    return (
        conclusive_base().label("conclusive_base"),
        is_failed().label("failed"),
        is_unconfirmed().label("unconfirmed"),
    )


def _verdict(row: sa.Row[*tuple[Any, ...]]) -> VerdictRow:
    return VerdictRow(**row._mapping)
