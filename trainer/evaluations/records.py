"""Evaluations on record: every statement that reads or changes their table. Each runs inside ``Database.run``."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from trainer.evaluations.state import OVER, Evaluation, Status
from trainer.evaluations.tables import evaluations, idempotency
from trainer.jobs.idempotency import Retry, remember
from trainer.jobs.spec import Control

CLEARED_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Draft:
    """An evaluation that is to be."""

    id: str
    project: str
    key_id: str
    job_key_id: str
    created_at: int
    body: dict[str, Any]
    arms: list[dict[str, Any]]


def add(db: sa.Connection, draft: Draft, retry: Retry | None) -> Evaluation:
    """Note a new evaluation, and the Idempotency-Key that it was made with."""
    db.execute(
        evaluations.insert().values(
            id=draft.id,
            project=draft.project,
            key_id=draft.key_id,
            job_key_id=draft.job_key_id,
            created_at=draft.created_at,
            body=draft.body,
            arms=draft.arms,
            status=Status.QUEUED,
            wanted=Control.RUN,
            queued_at=time.time(),
        )
    )
    if retry is not None:
        remember(db, idempotency, draft.project, retry, draft.id, float(draft.created_at))
    return get(db, draft.id)


def get(db: sa.Connection, evaluation_id: str) -> Evaluation:
    """The evaluation, of whatever project; there is one."""
    return Evaluation.of(db.execute(sa.select(evaluations).where(evaluations.c.id == evaluation_id)).one())


def find(db: sa.Connection, project: str, evaluation_id: str) -> Evaluation | None:
    """The project's evaluation of that id."""
    mine = sa.select(evaluations).where(evaluations.c.id == evaluation_id, evaluations.c.project == project)
    row = db.execute(mine).first()
    return None if row is None else Evaluation.of(row)


def page(db: sa.Connection, project: str, *, before: int | None, limit: int) -> list[Evaluation]:
    """The project's evaluations, newest first, those older than the one of that number."""
    wanted = sa.select(evaluations).where(evaluations.c.project == project)
    if before is not None:
        wanted = wanted.where(evaluations.c.number < before)
    return [Evaluation.of(row) for row in db.execute(wanted.order_by(evaluations.c.number.desc()).limit(limit))]


def open_ones(db: sa.Connection, project: str) -> int:
    """How many of the project's evaluations are not over."""
    query = sa.select(sa.func.count()).where(evaluations.c.project == project, evaluations.c.status.not_in(OVER))
    return int(db.execute(query).scalar_one())


def with_status(db: sa.Connection, statuses: Collection[Status]) -> list[Evaluation]:
    """All projects' evaluations in one of these states, oldest first."""
    query = sa.select(evaluations).where(evaluations.c.status.in_(statuses)).order_by(evaluations.c.number)
    return [Evaluation.of(row) for row in db.execute(query)]


def over_by_id(db: sa.Connection) -> dict[str, bool]:
    """Whether each evaluation of all projects is over, by its id."""
    rows = db.execute(sa.select(evaluations.c.id, evaluations.c.status))
    return {row.id: Status(row.status) in OVER for row in rows}


def change(db: sa.Connection, evaluation_id: str, **values: Any) -> Evaluation:
    """Set columns of an evaluation, and give it as it is then."""
    db.execute(evaluations.update().where(evaluations.c.id == evaluation_id).values(**values))
    return get(db, evaluation_id)


def take(db: sa.Connection) -> Evaluation | None:
    """The evaluation whose turn it is, noted as running; None where none may be started now.

    Those that were interrupted go on first. Else projects take turns: the one that has waited longest since one of its
    evaluations was served, and of its evaluations the one that has waited longest.
    """
    now = time.time()
    others = evaluations.alias()
    last = sa.select(sa.func.max(others.c.served_at)).where(others.c.project == evaluations.c.project)
    row = db.execute(
        sa.select(evaluations.c.id)
        .where(
            evaluations.c.status == Status.QUEUED,
            evaluations.c.wanted == Control.RUN,
            evaluations.c.not_before <= now,
        )
        .order_by(
            evaluations.c.interrupted.desc(), last.scalar_subquery(), evaluations.c.queued_at, evaluations.c.number
        )
        .limit(1)
    ).first()
    return None if row is None else change(db, row.id, served_at=now, status=Status.RUNNING, interrupted=False)


class EvaluationRows:
    """What the gateway's side has to know of these records; see `trainer.jobs.gateway_side.Rows`."""

    def stale(self, db: sa.Connection, finished_before: float) -> list[str]:
        """Evaluations that ended before then and whose big files are still there."""
        query = sa.select(evaluations.c.id).where(
            evaluations.c.status.in_(OVER),
            evaluations.c.cleared.is_(False),
            evaluations.c.finished_at < finished_before,
        )
        return list(db.execute(query.limit(CLEARED_AT_ONCE)).scalars())

    def cleared(self, db: sa.Connection, job_id: str) -> None:
        """Note that the big files of this one are gone."""
        change(db, job_id, cleared=True)
