"""Events and checkpoints on record. Each function runs inside ``Database.run``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from trainer.runs import records
from trainer.runs.protocol import WorkerEvent
from trainer.runs.state import CheckpointRow, Event, Run, Status
from trainer.runs.tables import checkpoints, events

CHECKPOINT_METRICS: Final = (
    "train_loss",
    "train_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
"""Of a `metrics` event; `step` comes beside them, and OpenAI's `valid_loss` is the same as `full_valid_loss` here."""
MAX_POINTS: Final = 400
DELETED_AT_ONCE: Final = 500
"""Rows that one statement deletes: SQLite bounds its parameters."""


def record_event(
    db: sa.Connection,
    run: Run,
    message: str,
    *,
    level: Literal["info", "warn", "error"] = "info",
    **data: Any,
) -> Run:
    """Add an event of the trainer's own; the run as it is then."""
    return append(db, run, [WorkerEvent(at=time.time(), level=level, message=message, data=data)], run.events_offset)


def append(db: sa.Connection, run: Run, found: Sequence[WorkerEvent], offset: int) -> Run:
    """Add events, and whatever of the run follows from them.

    Args:
        run: As it is on record now.
        found: In their order.
        offset: Where in events.jsonl the next ones begin.
    """
    changes: dict[str, Any] = {"events_offset": offset, "next_event": run.next_event + len(found)}
    if found:
        rows = [
            {"run": run.id, "number": number, **event.model_dump()}
            for number, event in enumerate(found, start=run.next_event)
        ]
        db.execute(events.insert(), rows)
    pauses, paused_s = run.pauses, run.paused_s
    for event in found:
        if "paused_s" in event.data:
            pauses, paused_s = pauses + 1, paused_s + float(event.data["paused_s"])
        if "stage" in event.data:
            changes["estimated_finish"] = None  # of the training: nobody knows how busy the engine will be
        if event.type == "metrics":
            if event.data.get("ends_epoch"):
                _add_checkpoint(db, run.id, event)
            if "seconds_left" in event.data and run.status is Status.RUNNING:
                changes["estimated_finish"] = round(event.at + float(event.data["seconds_left"]))
    return records.change(db, run.id, **changes, pauses=pauses, paused_s=round(paused_s, 3))


def _add_checkpoint(db: sa.Connection, run_id: str, event: WorkerEvent) -> None:
    metrics = {"step": event.data["step"]} | {
        name: event.data[name] for name in CHECKPOINT_METRICS if event.data.get(name) is not None
    }
    for name in ("loss", "mean_token_accuracy"):
        if f"full_valid_{name}" in metrics:
            metrics[f"valid_{name}"] = metrics[f"full_valid_{name}"]
    values = {"at": event.at, "metrics": metrics}
    # a step that is done again after a crash is the same checkpoint
    statement = insert(checkpoints).values(run=run_id, step=int(event.data["step"]), **values)
    db.execute(statement.on_conflict_do_update(index_elements=["run", "step"], set_=values))


def newest(db: sa.Connection, run_id: str, *, before: int | None, limit: int) -> list[Event]:
    """Events, newest first, those before the event of that number."""
    wanted = sa.select(events).where(events.c.run == run_id)
    if before is not None:
        wanted = wanted.where(events.c.number < before)
    return [Event(**row._mapping) for row in db.execute(wanted.order_by(events.c.number.desc()).limit(limit))]


def following(db: sa.Connection, run_id: str, *, after: int, limit: int) -> list[Event]:
    """Events, oldest first, those after the event of that number."""
    wanted = sa.select(events).where(events.c.run == run_id, events.c.number > after)
    return [Event(**row._mapping) for row in db.execute(wanted.order_by(events.c.number).limit(limit))]


def metrics(db: sa.Connection, run_id: str) -> list[dict[str, Any]]:
    """The numbers of all `metrics` events, one a step, in order of the steps."""
    wanted = sa.select(events.c.data).where(events.c.run == run_id, events.c.type == "metrics")
    by_step = {data["step"]: data for data in db.execute(wanted.order_by(events.c.number)).scalars() if "step" in data}
    return [by_step[step] for step in sorted(by_step)]


def newest_checkpoints(db: sa.Connection, run_id: str, *, before: int | None, limit: int) -> list[CheckpointRow]:
    """Checkpoints, newest first, those before that step."""
    wanted = sa.select(checkpoints).where(checkpoints.c.run == run_id)
    if before is not None:
        wanted = wanted.where(checkpoints.c.step < before)
    rows = db.execute(wanted.order_by(checkpoints.c.step.desc()).limit(limit))
    return [CheckpointRow(**row._mapping) for row in rows]


def downsample(db: sa.Connection, run_id: str) -> int:
    """Delete a run's `metrics` events but those that end an epoch and at most MAX_POINTS between; how many went.

    As many points stay on record as a picture of the curve shows; the whole curve is in the run's result file. All
    other events stay, and so do the ids of those that are left.
    """
    ends = sa.func.json_extract(events.c.data, "$.ends_epoch")
    metrics_events = sa.select(events.c.number, ends).where(events.c.run == run_id, events.c.type == "metrics")
    between = [number for number, ends_epoch in db.execute(metrics_events.order_by(events.c.number)) if not ends_epoch]
    gone = sorted(set(between) - set(spread(between, MAX_POINTS)))
    for start in range(0, len(gone), DELETED_AT_ONCE):
        chunk = gone[start : start + DELETED_AT_ONCE]
        db.execute(events.delete().where(events.c.run == run_id, events.c.number.in_(chunk)))
    return len(gone)


def spread(numbers: Sequence[int], limit: int) -> list[int]:
    """At most ``limit`` (two or more) of ``numbers``, evenly spread, the first and the last among them."""
    if len(numbers) <= limit:
        return list(numbers)
    return [numbers[index * (len(numbers) - 1) // (limit - 1)] for index in range(limit)]
