"""Every statement that reads or changes the table of runs. Each function runs inside ``Database.run``."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import sqlalchemy as sa

from adapters.authorization import KeyScope, StoreNames
from adapters.database.authorization import visible
from adapters.database.sql import json_object_has, json_object_is_missing
from trainer.runs.idempotency import Retry, remember
from trainer.runs.protocol import Control
from trainer.runs.state import OVER, Run, Status
from trainer.runs.tables import runs
from trainer.tracking import records as tracking

CLEAR_BATCH: Final = 100
NO_FILTER: Final[Mapping[str, str]] = MappingProxyType({})
TurnColumn = Literal["looked_at", "served_at"]
"""The column with the time at which a run last left a queue."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """The values of a run that is created."""

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
    """Its first status."""
    stores: tuple[StoreNames, ...] | None = ()
    parent: str | None = None
    """The run that starts it and waits for it."""
    trackers: tuple[str, ...] = ()
    """The operator's experiment trackers that follow it."""


def add(db: sa.Connection, new_run: NewRun, retry: Retry | None) -> Run:
    """Record a new run, and the Idempotency-Key that it was created with."""
    db.execute(
        runs.insert().values(
            id=new_run.id,
            kind=new_run.kind,
            project=new_run.project,
            key_id=new_run.key_id,
            run_key_id=new_run.run_key_id,
            created_at=new_run.created_at,
            body=new_run.body,
            adapters=list(new_run.adapters),
            stores=new_run.stores,
            details=new_run.details,
            status=new_run.status,
            wanted=Control.RUN,
            queued_at=time.time(),
            parent=new_run.parent,
        )
    )
    for tracker in new_run.trackers:
        tracking.add(db, new_run.id, tracker)
    if retry is not None:
        remember(db, new_run.project, new_run.kind, retry, new_run.id, float(new_run.created_at))
    return get(db, new_run.id)


def get(db: sa.Connection, run_id: str) -> Run:
    """The run with this id, in any project; it must exist."""
    return Run.of(db.execute(sa.select(runs).where(runs.c.id == run_id)).one())


def has_any(db: sa.Connection) -> bool:
    """Whether there is a run of any kind."""
    return db.execute(sa.select(runs.c.number).limit(1)).first() is not None


def find(db: sa.Connection, kind: str, project: str, run_id: str) -> Run | None:
    """The project's run of this kind and id; None if there is none."""
    return _first(db, runs.c.kind == kind, runs.c.project == project, runs.c.id == run_id)


def used_run_keys(db: sa.Connection, run_key_ids: Collection[str]) -> set[str]:
    """Those of these keys that some run of any kind was given, ended ones included."""
    return set(db.scalars(sa.select(runs.c.run_key_id).where(runs.c.run_key_id.in_(run_key_ids))))


def find_by_run_key(db: sa.Connection, kind: str, project: str, run_key_id: str) -> Run | None:
    """The project's run of this kind that was given the key of this id; None if there is none. A child run has its
    parent's key, and is not found."""
    own = runs.c.parent.is_(None)
    return _first(db, runs.c.kind == kind, runs.c.project == project, runs.c.run_key_id == run_key_id, own)


def find_by_id(db: sa.Connection, run_id: str) -> Run | None:
    """A run of any kind and project; None if there is none."""
    return _first(db, runs.c.id == run_id)


def _first(db: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Run | None:
    row = db.execute(sa.select(runs).where(*conditions)).first()
    return None if row is None else Run.of(row)


def page(
    db: sa.Connection,
    kind: str,
    *,
    before: int | None,
    limit: int,
    caller: KeyScope,
    metadata: Mapping[str, str] | None = NO_FILTER,
) -> list[Run]:
    """The runs of a kind that a caller may see, newest first.

    Args:
        before: Only runs older than the run with this number.
        limit: Maximum number of runs.
        caller: Who sees them.
        metadata: Only runs with these pairs in their metadata; None selects runs without any metadata.
    """
    columns = runs.c
    shown = visible(
        caller, project=columns.project, adapters=columns.adapters, stores=columns.stores, key_id=columns.key_id
    )
    query = sa.select(runs).where(columns.kind == kind, shown, *_with_metadata(metadata))
    if before is not None:
        query = query.where(columns.number < before)
    return [Run.of(row) for row in db.execute(query.order_by(columns.number.desc()).limit(limit))]


def _with_metadata(metadata: Mapping[str, str] | None) -> Iterable[sa.ColumnElement[bool]]:
    if metadata is None:
        yield json_object_is_missing(runs.c.body, "metadata")
        return
    for key, value in metadata.items():
        yield json_object_has(runs.c.body, "metadata", key, value)


def open_runs(db: sa.Connection, kind: str, project: str) -> int:
    """The number of the project's unfinished runs of a kind, without child runs: their parent counts."""
    unfinished = sa.and_(runs.c.status.not_in(OVER), runs.c.parent.is_(None))
    query = sa.select(sa.func.count()).where(runs.c.kind == kind, runs.c.project == project, unfinished)
    return int(db.execute(query).scalar_one())


def children(db: sa.Connection, run_id: str) -> list[Run]:
    """The child runs of a run, oldest first."""
    query = sa.select(runs).where(runs.c.parent == run_id).order_by(runs.c.number)
    return [Run.of(row) for row in db.execute(query)]


def request_control(db: sa.Connection, run_id: str, control: Control) -> Run:
    """Record what is wanted of a run and of all its unfinished child runs; what is being cancelled stays so."""
    for child in children(db, run_id):
        if not child.over and child.wanted is not Control.CANCEL:
            request_control(db, child.id, control)
    return change(db, run_id, wanted=control)


def paused_s(db: sa.Connection) -> float:
    """Seconds for which all runs together, finished or not, were paused for live traffic."""
    return float(db.execute(sa.select(sa.func.coalesce(sa.func.sum(runs.c.paused_s), 0.0))).scalar_one())


def with_status(db: sa.Connection, statuses: Collection[Status]) -> list[Run]:
    """The runs of all projects with one of these statuses, oldest first."""
    query = sa.select(runs).where(runs.c.status.in_(statuses)).order_by(runs.c.number)
    return [Run.of(row) for row in db.execute(query)]


def over_by_id(db: sa.Connection, kind: str) -> dict[str, bool]:
    """Maps the id of every run of a kind, in all projects, to whether the run is over."""
    rows = db.execute(sa.select(runs.c.id, runs.c.status).where(runs.c.kind == kind))
    return {row.id: Status(row.status) in OVER for row in rows}


def change(db: sa.Connection, run_id: str, **values: Any) -> Run:
    """Set columns of a run and return the updated run."""
    db.execute(runs.update().where(runs.c.id == run_id).values(**values))
    return get(db, run_id)


def take_next(
    db: sa.Connection, kind: str, *, status: Status, turn: TurnColumn, exclude: Collection[str]
) -> Run | None:
    """Take the next run of a kind that waits in `status` and record its turn; None if no run may start now.

    Interrupted runs come first. Otherwise projects take turns: the project whose last turn is the longest ago, and of
    its runs the one that has waited longest.

    Args:
        exclude: Ids of runs that must not be taken.
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
            runs.c.id.not_in(exclude),
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


def last_turns(db: sa.Connection, kind: str, turn: TurnColumn) -> dict[str, float]:
    """When each project's runs of a kind last left a queue, Unix seconds; `take_next` goes by it."""
    query = sa.select(runs.c.project, sa.func.max(runs.c[turn])).where(runs.c.kind == kind).group_by(runs.c.project)
    return {project: float(at) for project, at in db.execute(query)}


def stale(db: sa.Connection, kind: str, finished_before: float) -> list[str]:
    """A batch of ids of runs that ended before then (Unix seconds) and whose large files still exist.

    A child run is not among them while its parent may still read them.
    """
    parents = runs.alias()
    unfinished = sa.select(parents.c.id).where(parents.c.id == runs.c.parent, parents.c.status.not_in(OVER))
    query = sa.select(runs.c.id).where(
        ~unfinished.exists(),
        runs.c.kind == kind,
        runs.c.status.in_(OVER),
        runs.c.cleared.is_(False),
        runs.c.finished_at < finished_before,
    )
    return list(db.execute(query.limit(CLEAR_BATCH)).scalars())
