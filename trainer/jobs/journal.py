"""Events and checkpoints on record. Each function runs inside ``Database.run``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from trainer.jobs import records
from trainer.jobs.spec import WorkerEvent
from trainer.jobs.state import CheckpointRow, Event, Job, Status
from trainer.jobs.tables import checkpoints, events

CHECKPOINT_METRICS: Final = (
    "train_loss",
    "train_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
"""Of a `metrics` event; `step` comes beside them, and OpenAI's `valid_loss` is the same as `full_valid_loss` here."""


def say(
    db: sa.Connection,
    job: Job,
    message: str,
    *,
    level: Literal["info", "warn", "error"] = "info",
    **data: Any,
) -> Job:
    """Add an event of the trainer's own; the job as it is then."""
    return append(db, job, [WorkerEvent(at=time.time(), level=level, message=message, data=data)], job.events_offset)


def append(db: sa.Connection, job: Job, found: Sequence[WorkerEvent], offset: int) -> Job:
    """Add events, and whatever of the job follows from them.

    Args:
        job: As it is on record now.
        found: In their order.
        offset: Where in events.jsonl the next ones begin.
    """
    changes: dict[str, Any] = {"events_offset": offset, "next_event": job.next_event + len(found)}
    if found:
        rows = [
            {"job": job.id, "number": number, **event.model_dump()}
            for number, event in enumerate(found, start=job.next_event)
        ]
        db.execute(events.insert(), rows)
    pauses, paused_s = job.pauses, job.paused_s
    for event in found:
        if "paused_s" in event.data:
            pauses, paused_s = pauses + 1, paused_s + float(event.data["paused_s"])
        if "stage" in event.data:
            changes["estimated_finish"] = None  # of the training: nobody knows how busy the engine will be
        if event.type == "metrics":
            if event.data.get("ends_epoch"):
                _add_checkpoint(db, job.id, event)
            if "seconds_left" in event.data and job.status is Status.RUNNING:
                changes["estimated_finish"] = round(event.at + float(event.data["seconds_left"]))
    return records.change(db, job.id, **changes, pauses=pauses, paused_s=round(paused_s, 3))


def _add_checkpoint(db: sa.Connection, job_id: str, event: WorkerEvent) -> None:
    metrics = {"step": event.data["step"]} | {
        name: event.data[name] for name in CHECKPOINT_METRICS if event.data.get(name) is not None
    }
    for name in ("loss", "mean_token_accuracy"):
        if f"full_valid_{name}" in metrics:
            metrics[f"valid_{name}"] = metrics[f"full_valid_{name}"]
    values = {"at": event.at, "metrics": metrics}
    # a step that is done again after a crash is the same checkpoint
    statement = insert(checkpoints).values(job=job_id, step=int(event.data["step"]), **values)
    db.execute(statement.on_conflict_do_update(index_elements=["job", "step"], set_=values))


def newest(db: sa.Connection, job_id: str, *, before: int | None, limit: int) -> list[Event]:
    """Events, newest first, those before the event of that number."""
    wanted = sa.select(events).where(events.c.job == job_id)
    if before is not None:
        wanted = wanted.where(events.c.number < before)
    return [Event(**row._mapping) for row in db.execute(wanted.order_by(events.c.number.desc()).limit(limit))]


def following(db: sa.Connection, job_id: str, *, after: int, limit: int) -> list[Event]:
    """Events, oldest first, those after the event of that number."""
    wanted = sa.select(events).where(events.c.job == job_id, events.c.number > after)
    return [Event(**row._mapping) for row in db.execute(wanted.order_by(events.c.number).limit(limit))]


def metrics(db: sa.Connection, job_id: str) -> list[dict[str, Any]]:
    """The numbers of all `metrics` events, one a step, in order of the steps."""
    wanted = sa.select(events.c.data).where(events.c.job == job_id, events.c.type == "metrics")
    by_step = {data["step"]: data for data in db.execute(wanted.order_by(events.c.number)).scalars() if "step" in data}
    return [by_step[step] for step in sorted(by_step)]


def newest_checkpoints(db: sa.Connection, job_id: str, *, before: int | None, limit: int) -> list[CheckpointRow]:
    """Checkpoints, newest first, those before that step."""
    wanted = sa.select(checkpoints).where(checkpoints.c.job == job_id)
    if before is not None:
        wanted = wanted.where(checkpoints.c.step < before)
    rows = db.execute(wanted.order_by(checkpoints.c.step.desc()).limit(limit))
    return [CheckpointRow(**row._mapping) for row in rows]
