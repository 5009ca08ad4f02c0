"""Jobs on record: every statement that reads or changes the table of jobs. Each runs inside ``Database.run``."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trainer.jobs.idempotency import Retry, remember
from trainer.jobs.spec import Control
from trainer.jobs.state import OVER, Job, Status
from trainer.jobs.tables import idempotency, jobs


@dataclass(frozen=True, slots=True)
class Draft:
    """A job that is to be."""

    id: str
    project: str
    key_id: str
    job_key_id: str
    created_at: int
    body: dict[str, Any]
    seed: int
    adapter: str
    device: str


def add(db: sa.Connection, draft: Draft, retry: Retry | None) -> Job:
    """Note a new job, and the Idempotency-Key that it was made with."""
    db.execute(
        jobs.insert().values(
            id=draft.id,
            project=draft.project,
            key_id=draft.key_id,
            job_key_id=draft.job_key_id,
            created_at=draft.created_at,
            body=draft.body,
            seed=draft.seed,
            adapter=draft.adapter,
            device=draft.device,
            status=Status.VALIDATING,
            wanted=Control.RUN,
            queued_at=float(draft.created_at),
            result_files=[],
        )
    )
    if retry is not None:
        remember(db, idempotency, draft.project, retry, draft.id, float(draft.created_at))
    return get(db, draft.id)


def get(db: sa.Connection, job_id: str) -> Job:
    """The job, of whatever project; there is one."""
    return Job.of(db.execute(sa.select(jobs).where(jobs.c.id == job_id)).one())


def find(db: sa.Connection, project: str, job_id: str) -> Job | None:
    """The project's job of that id."""
    row = db.execute(sa.select(jobs).where(jobs.c.id == job_id, jobs.c.project == project)).first()
    return None if row is None else Job.of(row)


def exists(db: sa.Connection, job_id: str) -> bool:
    """Whether there is such a job in any project."""
    return db.execute(sa.select(jobs.c.number).where(jobs.c.id == job_id)).first() is not None


def page(
    db: sa.Connection,
    project: str,
    *,
    before: int | None,
    limit: int,
    metadata: Mapping[str, str] | None,
    adapters: Collection[str] | None = None,
) -> list[Job]:
    """The project's jobs, newest first.

    Args:
        before: Only those older than the job of this number.
        limit: Most of them.
        metadata: Only those with these pairs in their metadata; None: only those without any metadata.
        adapters: Only those that make one of these; None: whichever they make.
    """
    wanted = sa.select(jobs).where(jobs.c.project == project)
    if adapters is not None:
        wanted = wanted.where(jobs.c.adapter.in_(adapters))
    if before is not None:
        wanted = wanted.where(jobs.c.number < before)
    pairs = sa.func.json_each(jobs.c.body, "$.metadata").table_valued("key", "value")
    if metadata is None:
        wanted = wanted.where(sa.func.json_type(jobs.c.body, "$.metadata").is_distinct_from("object"))
    for key, value in (metadata or {}).items():
        wanted = wanted.where(
            sa.exists(sa.select(sa.literal(1)).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value))
        )
    return [Job.of(row) for row in db.execute(wanted.order_by(jobs.c.number.desc()).limit(limit))]


def adapters(db: sa.Connection, project: str) -> list[str]:
    """The names of all adapters that the project's jobs make."""
    query = sa.select(jobs.c.adapter).where(jobs.c.project == project).distinct()
    return list(db.execute(query).scalars())


def made_with(db: sa.Connection, project: str, job_key_id: str) -> Job | None:
    """The project's job that has the key of that id."""
    row = db.execute(sa.select(jobs).where(jobs.c.project == project, jobs.c.job_key_id == job_key_id)).first()
    return None if row is None else Job.of(row)


def open_jobs(db: sa.Connection, project: str) -> int:
    """How many of the project's jobs are not over."""
    query = sa.select(sa.func.count()).where(jobs.c.project == project, jobs.c.status.not_in(OVER))
    return int(db.execute(query).scalar_one())


def paused_s(db: sa.Connection) -> float:
    """How long all jobs together, over or not, have stood still for callers."""
    return float(db.execute(sa.select(sa.func.coalesce(sa.func.sum(jobs.c.paused_s), 0.0))).scalar_one())


def with_status(db: sa.Connection, statuses: Collection[Status]) -> list[Job]:
    """All projects' jobs in one of these states, oldest first."""
    query = sa.select(jobs).where(jobs.c.status.in_(statuses)).order_by(jobs.c.number)
    return [Job.of(row) for row in db.execute(query)]


def change(db: sa.Connection, job_id: str, **values: Any) -> Job:
    """Set columns of a job, and give it as it is then."""
    db.execute(jobs.update().where(jobs.c.id == job_id).values(**values))
    return get(db, job_id)


def take(db: sa.Connection, *, status: Status, but: Collection[str]) -> Job | None:
    """The job in `status` whose turn it is, noted as served; None where none may be started now.

    Jobs that were interrupted go on first. Else projects take turns: the one that has waited longest since one of its
    jobs was served, and of its jobs the one that has waited longest.
    """
    now = time.time()
    turn = jobs.c.looked_at if status is Status.VALIDATING else jobs.c.served_at
    others = jobs.alias()
    other_turn = others.c[turn.name]
    last = sa.select(sa.func.max(other_turn)).where(others.c.project == jobs.c.project).scalar_subquery()
    row = db.execute(
        sa.select(jobs)
        .where(
            jobs.c.status == status,
            jobs.c.wanted == Control.RUN,
            jobs.c.not_before <= now,
            jobs.c.id.not_in(but),
        )
        .order_by(jobs.c.interrupted.desc(), last, jobs.c.queued_at, jobs.c.number)
        .limit(1)
    ).first()
    if row is None:
        return None
    started: dict[str, Any] = {turn.name: now}
    if status is Status.QUEUED:
        started |= {"status": Status.RUNNING, "interrupted": False}
    return change(db, row.id, **started)


def stale(db: sa.Connection, finished_before: float, limit: int = 100) -> list[str]:
    """Jobs that ended before then and whose big files are still there."""
    query = sa.select(jobs.c.id).where(
        jobs.c.status.in_(OVER), jobs.c.cleared.is_(False), jobs.c.finished_at < finished_before
    )
    return list(db.execute(query.limit(limit)).scalars())
