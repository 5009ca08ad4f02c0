"""Deletes events and evaluations of long ago, as the settings say; what a run leaves on the disk goes earlier, see
`Housekeeper`.

A little at a time: each transaction deletes one small batch, and others have the database in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import sqlalchemy as sa

from trainer.config import Settings
from trainer.database import Database
from trainer.runs.device_time import device_time
from trainer.runs.directories import RunDirectories
from trainer.runs.state import OVER
from trainer.runs.tables import checkpoints, events, idempotency, runs
from trainer.tracking.records import TrackingState, tracked

EVERY_S: Final = 3600.0
BATCH: Final = 500
PAUSE_S: Final = 0.05
DAY_S: Final = 86_400
_LOG = logging.getLogger("hatrack.trainer.retention")
# of reviews, a room above this one: what people were asked to choose between, and what they chose
_QUEUES: Final = sa.table("queues", sa.column("number"), sa.column("evaluation"), sa.column("created_at"))
_PAIRS: Final = sa.table("pairs", sa.column("number"), sa.column("queue"))
_CHOICES: Final = sa.table("choices", sa.column("pair"))


class Retention:
    """Keeps events and evaluations as long as the settings say; for ever where they say nothing.

    Args:
        evaluations: The directories of the evaluations.
        kind: The name of that kind of run.
        wall: Unix time, seconds.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        evaluations: RunDirectories,
        kind: str,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._events_days = settings.events_days
        self._evaluations_days = settings.evaluations_days
        self._database = database
        self._evaluations = evaluations
        self._kind = kind
        self._wall = wall
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start deleting, at once and every hour."""
        if self._events_days is not None or self._evaluations_days is not None:
            self._task = asyncio.create_task(self._work(), name="retention")

    async def stop(self) -> None:
        """Stop deleting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                await self.delete_old()
            except Exception:  # a full disk passes; the next round may be luckier
                _LOG.exception("old records could not be deleted")
            await asyncio.sleep(EVERY_S)

    async def delete_old(self) -> tuple[int, int]:
        """Delete what is too old now; returns the numbers of events and of evaluations."""
        now = self._wall()
        deleted_events = deleted_evaluations = 0
        if self._evaluations_days is not None:
            before = now - self._evaluations_days * DAY_S
            while run_id := await self._database.run(partial(old_evaluation, kind=self._kind, before=before)):
                # before its events, which are many: from now on nobody can choose between its answers
                if not await self._database.run(partial(delete_pairs, run_id=run_id, before=before)):
                    continue
                await self._delete_events(partial(events_of, run_id=run_id))
                if not await self._database.run(partial(delete_run, run_id=run_id, before=before)):
                    continue
                # after its row: a directory that is left by a crash is removed at the next start
                await asyncio.to_thread(self._evaluations.discard, run_id)
                deleted_evaluations += 1
        if self._events_days is not None:
            deleted_events = await self._delete_events(partial(old_events, before=now - self._events_days * DAY_S))
        return deleted_events, deleted_evaluations

    async def _delete_events(self, choose: Callable[[sa.Connection], sa.Select[tuple[str, int]]]) -> int:
        def delete(db: sa.Connection) -> int:
            chosen = db.execute(choose(db).limit(BATCH)).all()
            for run_id in {row.run for row in chosen}:
                numbers = [row.number for row in chosen if row.run == run_id]
                db.execute(events.delete().where(events.c.run == run_id, events.c.number.in_(numbers)))
            return len(chosen)

        total = 0
        while count := await self._database.run(delete):
            total += count
            await asyncio.sleep(PAUSE_S)
        return total


def old_evaluation(db: sa.Connection, kind: str, before: float) -> str | None:
    """An evaluation that ended before then (Unix seconds); None if there is none.

    Those of a ladder stay with it; those that people have reviewed stay, as they tell what a judge is worth.
    """
    query = sa.select(runs.c.id).where(
        runs.c.kind == kind,
        runs.c.status.in_(OVER),
        runs.c.finished_at < before,
        runs.c.parent.is_(None),
        ~_is_reviewed(runs.c.id, before),
    )
    run_id = db.scalar(query.order_by(runs.c.number).limit(1))
    return None if run_id is None else str(run_id)


def _is_reviewed(run_id: sa.ColumnElement[str], before: float) -> sa.ColumnElement[bool]:
    """Whether a person has chosen between its answers, or was asked to since then: every judge leaves pairs."""
    chosen = sa.select(_CHOICES.c.pair).join(_PAIRS, _PAIRS.c.number == _CHOICES.c.pair)
    chosen = chosen.where(_PAIRS.c.queue == _QUEUES.c.number).correlate(_QUEUES)
    kept = sa.or_(_QUEUES.c.created_at >= before, chosen.exists())
    return sa.select(_QUEUES.c.number).where(_QUEUES.c.evaluation == run_id, kept).exists()


def events_of(_db: sa.Connection, run_id: str) -> sa.Select[tuple[str, int]]:
    """All events of one run."""
    return sa.select(events.c.run, events.c.number).where(events.c.run == run_id).order_by(events.c.number)


def old_events(db: sa.Connection, before: float) -> sa.Select[tuple[str, int]]:
    """The events of one run that ended before then, of any kind; none if no such run has any.

    Its last metrics stay: estimates of later jobs read from them how fast it was. So do those of a run that an
    experiment tracker still follows, since what it has not had yet is sent from them.
    """
    is_followed = sa.select(tracked.c.run).where(tracked.c.run == runs.c.id, tracked.c.state == TrackingState.OPEN)
    has_events = sa.select(events.c.run).where(events.c.run == runs.c.id, _is_not_last_metrics())
    query = sa.select(runs.c.id).where(
        runs.c.status.in_(OVER), runs.c.finished_at < before, ~is_followed.exists(), has_events.exists()
    )
    return events_of(db, db.scalar(query.limit(1)) or "").where(_is_not_last_metrics())


def _is_not_last_metrics() -> sa.ColumnElement[bool]:
    others = events.alias()
    last = sa.select(sa.func.max(others.c.number)).where(others.c.run == events.c.run, others.c.type == "metrics")
    return events.c.number != sa.func.coalesce(last.correlate(events).scalar_subquery(), 0)


def delete_pairs(db: sa.Connection, run_id: str, before: float) -> bool:
    """Delete what nobody has chosen between; False if a person has, since `old_evaluation`, and all is left."""
    if db.scalar(sa.select(_is_reviewed(sa.literal(run_id), before))):
        return False
    queue = sa.select(_QUEUES.c.number).where(_QUEUES.c.evaluation == run_id).scalar_subquery()
    db.execute(sa.delete(_PAIRS).where(_PAIRS.c.queue == queue))
    db.execute(sa.delete(_QUEUES).where(_QUEUES.c.evaluation == run_id))
    return True


def delete_run(db: sa.Connection, run_id: str, before: float) -> bool:
    """Delete a run without events, and all that hangs on it; False, and nothing, as `delete_pairs`."""
    if not delete_pairs(db, run_id, before):
        return False
    for table in (checkpoints, idempotency, device_time, tracked):
        db.execute(table.delete().where(table.c.run == run_id))
    db.execute(runs.delete().where(runs.c.id == run_id))
    return True
