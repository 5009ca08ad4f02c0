"""Runs on record: every statement that reads or changes the table of runs. Each runs inside ``Database.run``."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import sqlalchemy as sa

from trainer.runs.idempotency import Retry, remember
from trainer.runs.protocol import Control
from trainer.runs.state import OVER, Run, Status
from trainer.runs.tables import runs

CLEARED_AT_ONCE: Final = 100
NO_FILTER: Final[Mapping[str, str]] = MappingProxyType({})
Turn = Literal["looked_at", "served_at"]
"""The column that says when a run last had its turn in a queue."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A run that is to be."""

    id: str
    kind: str
    project: str
    key_id: str
    run_key_id: str
    created_at: int
    body: dict[str, Any]
    adapters: tuple[str, ...]
    details: dict[str, Any]
    status: Status
    """The state that it begins in."""


def add(db: sa.Connection, draft: Draft, retry: Retry | None) -> Run:
    """Note a new run, and the Idempotency-Key that it was made with."""
    db.execute(
        runs.insert().values(
            id=draft.id,
            kind=draft.kind,
            project=draft.project,
            key_id=draft.key_id,
            run_key_id=draft.run_key_id,
            created_at=draft.created_at,
            body=draft.body,
            adapters=list(draft.adapters),
            details=draft.details,
            status=draft.status,
            wanted=Control.RUN,
            queued_at=time.time(),
        )
    )
    if retry is not None:
        remember(db, draft.project, draft.kind, retry, draft.id, float(draft.created_at))
    return get(db, draft.id)


def get(db: sa.Connection, run_id: str) -> Run:
    """The run, of whatever project; there is one."""
    return Run.of(db.execute(sa.select(runs).where(runs.c.id == run_id)).one())


def find(db: sa.Connection, kind: str, project: str, run_id: str) -> Run | None:
    """The project's run of that kind and id."""
    return _first(db, runs.c.kind == kind, runs.c.project == project, runs.c.id == run_id)


def made_with(db: sa.Connection, kind: str, project: str, run_key_id: str) -> Run | None:
    """The project's run of that kind that has the key of that id."""
    return _first(db, runs.c.kind == kind, runs.c.project == project, runs.c.run_key_id == run_key_id)


def _first(db: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Run | None:
    row = db.execute(sa.select(runs).where(*conditions)).first()
    return None if row is None else Run.of(row)


def page(
    db: sa.Connection,
    kind: str,
    project: str,
    *,
    before: int | None,
    limit: int,
    may_see: Callable[[Run], bool],
    metadata: Mapping[str, str] | None = NO_FILTER,
) -> list[Run]:
    """The project's runs of a kind, newest first.

    Args:
        before: Only those older than the run of this number.
        limit: At most so many.
        may_see: Whether whoever asks sees a run.
        metadata: Only those with these pairs in their metadata; None: only those without any metadata.
    """
    query = sa.select(runs).where(runs.c.kind == kind, runs.c.project == project, *_with_metadata(metadata))
    found: list[Run] = []
    while len(found) < limit:  # most keys may use all adapters, and need one round
        older = query if before is None else query.where(runs.c.number < before)
        batch = [Run.of(row) for row in db.execute(older.order_by(runs.c.number.desc()).limit(limit))]
        found += filter(may_see, batch)
        if len(batch) < limit:
            break
        before = batch[-1].number
    return found[:limit]


def _with_metadata(metadata: Mapping[str, str] | None) -> Iterable[sa.ColumnElement[bool]]:
    if metadata is None:
        yield sa.func.json_type(runs.c.body, "$.metadata").is_distinct_from("object")
        return
    pairs = sa.func.json_each(runs.c.body, "$.metadata").table_valued("key", "value")
    for key, value in metadata.items():
        yield sa.exists(sa.select(sa.literal(1)).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value))


def open_runs(db: sa.Connection, kind: str, project: str) -> int:
    """How many of the project's runs of a kind are not over."""
    query = sa.select(sa.func.count()).where(runs.c.kind == kind, runs.c.project == project, runs.c.status.not_in(OVER))
    return int(db.execute(query).scalar_one())


def paused_s(db: sa.Connection) -> float:
    """How long all runs together, over or not, were paused for live traffic."""
    return float(db.execute(sa.select(sa.func.coalesce(sa.func.sum(runs.c.paused_s), 0.0))).scalar_one())


def with_status(db: sa.Connection, statuses: Collection[Status]) -> list[Run]:
    """All projects' runs in one of these states, oldest first."""
    query = sa.select(runs).where(runs.c.status.in_(statuses)).order_by(runs.c.number)
    return [Run.of(row) for row in db.execute(query)]


def over_by_id(db: sa.Connection, kind: str) -> dict[str, bool]:
    """Whether each run of a kind, of all projects, is over, by its id."""
    rows = db.execute(sa.select(runs.c.id, runs.c.status).where(runs.c.kind == kind))
    return {row.id: Status(row.status) in OVER for row in rows}


def change(db: sa.Connection, run_id: str, **values: Any) -> Run:
    """Set columns of a run, and give it as it is then."""
    db.execute(runs.update().where(runs.c.id == run_id).values(**values))
    return get(db, run_id)


def take(db: sa.Connection, kind: str, *, status: Status, turn: Turn, but: Collection[str]) -> Run | None:
    """The run of a kind, waiting in `status`, whose turn it is, noted as served; None where none may be started now.

    Runs that were interrupted go on first. Else projects take turns: the one that has waited longest since one of its
    runs was served, and of its runs the one that has waited longest.
    """
    now = time.time()
    others = runs.alias()
    last = sa.select(sa.func.max(others.c[turn])).where(
        others.c.kind == runs.c.kind, others.c.project == runs.c.project
    )
    run_id = db.execute(
        sa.select(runs.c.id)
        .where(
            runs.c.kind == kind,
            runs.c.status == status,
            runs.c.wanted == Control.RUN,
            runs.c.not_before <= now,
            runs.c.id.not_in(but),
        )
        .order_by(runs.c.interrupted.desc(), last.scalar_subquery(), runs.c.queued_at, runs.c.number)
        .limit(1)
    ).scalar()
    if run_id is None:
        return None
    started: dict[str, Any] = {turn: now}
    if status is Status.QUEUED:
        started |= {"status": Status.RUNNING, "interrupted": False}
    return change(db, run_id, **started)


def stale(db: sa.Connection, kind: str, finished_before: float) -> list[str]:
    """Runs of a kind that ended before then (Unix seconds) and whose big files are still there; a batch of them."""
    query = sa.select(runs.c.id).where(
        runs.c.kind == kind,
        runs.c.status.in_(OVER),
        runs.c.cleared.is_(False),
        runs.c.finished_at < finished_before,
    )
    return list(db.execute(query.limit(CLEARED_AT_ONCE)).scalars())
