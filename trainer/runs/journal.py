"""Recorded events and checkpoints. Each function runs inside ``Database.run``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa

from adapters.database.sql import insert
from adapters.database.types import BigInt
from trainer.runs import outside, records
from trainer.runs.protocol import OutsideCharge, WorkerEvent
from trainer.runs.state import CheckpointRow, Event, Run, Status
from trainer.runs.tables import checkpoints, events

CHECKPOINT_METRICS: Final = (
    "train_loss",
    "train_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
    "train_reward_accuracy",
    "full_valid_reward_accuracy",
)
"""Fields of a `metrics` event that a checkpoint keeps beside `step`; `valid_loss` is the same as `full_valid_loss`."""
MAX_POINTS: Final = 400
DELETE_BATCH: Final = 500
"""Rows deleted per statement: SQLite limits the number of parameters."""


def record_event(
    db: sa.Connection,
    run: Run,
    message: str,
    *,
    level: Literal["info", "warn", "error"] = "info",
    **data: Any,
) -> Run:
    """Append one of the trainer's own events and return the updated run."""
    return append(db, run, [WorkerEvent(at=time.time(), level=level, message=message, data=data)], run.events_offset)


def append(db: sa.Connection, run: Run, new_events: Sequence[WorkerEvent], offset: int) -> Run:
    """Append events and update the run's pauses, checkpoints and estimated finish from them; returns the run. Charges
    are added to what the run has cost, and are no events.

    Args:
        run: The run as recorded now.
        new_events: In order.
        offset: The offset in events.jsonl after them.
    """
    payer = outside.Payer(run.project, run.key_id, run.id)
    for charge in (event for event in new_events if event.type == "charge"):
        outside.add(db, payer, OutsideCharge.model_validate(charge.data), charge.at)
    new_events = [event for event in new_events if event.type != "charge"]
    changes: dict[str, Any] = {"events_offset": offset, "next_event": run.next_event + len(new_events)}
    if new_events:
        rows = [
            {"run": run.id, "number": number, **event.model_dump()}
            for number, event in enumerate(new_events, start=run.next_event)
        ]
        db.execute(events.insert(), rows)
    pauses, paused_s = run.pauses, run.paused_s
    for event in new_events:
        if "paused_s" in event.data:
            pauses, paused_s = pauses + 1, paused_s + float(event.data["paused_s"])
        if "stage" in event.data:
            changes["estimated_finish"] = None  # it covers the training alone: how busy the engine will be is not known
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
    for name in ("loss", "mean_token_accuracy", "reward_accuracy"):
        if f"full_valid_{name}" in metrics:
            metrics[f"valid_{name}"] = metrics[f"full_valid_{name}"]
    values = {"at": event.at, "metrics": metrics}
    # a step that is repeated after a crash is the same checkpoint
    statement = insert(db, checkpoints).values(run=run_id, step=int(event.data["step"]), **values)
    db.execute(statement.on_conflict_do_update(index_elements=["run", "step"], set_=values))


def newest(db: sa.Connection, run_id: str, *, before: int | None, limit: int) -> list[Event]:
    """At most ``limit`` events before the event number ``before``, newest first."""
    query = sa.select(events).where(events.c.run == run_id)
    if before is not None:
        query = query.where(events.c.number < before)
    return [Event(**row._mapping) for row in db.execute(query.order_by(events.c.number.desc()).limit(limit))]


def following(db: sa.Connection, run_id: str, *, after: int, limit: int) -> list[Event]:
    """At most ``limit`` events after the event number ``after``, oldest first."""
    query = sa.select(events).where(events.c.run == run_id, events.c.number > after)
    return [Event(**row._mapping) for row in db.execute(query.order_by(events.c.number).limit(limit))]


def last_step(db: sa.Connection, run_id: str, *, up_to: int) -> int:
    """The greatest step of the `metrics` events up to the event number ``up_to``; 0 if there is none."""
    step = sa.cast(events.c.data["step"].as_string(), BigInt)
    chosen = events.c.run == run_id, events.c.number <= up_to, events.c.type == "metrics"
    return int(db.execute(sa.select(sa.func.max(step)).where(*chosen)).scalar() or 0)


def metrics(db: sa.Connection, run_id: str) -> list[dict[str, Any]]:
    """The data of all `metrics` events, one per step, ordered by step."""
    query = sa.select(events.c.data).where(events.c.run == run_id, events.c.type == "metrics")
    by_step = {data["step"]: data for data in db.execute(query.order_by(events.c.number)).scalars() if "step" in data}
    return [by_step[step] for step in sorted(by_step)]


def newest_checkpoints(db: sa.Connection, run_id: str, *, before: int | None, limit: int) -> list[CheckpointRow]:
    """At most ``limit`` checkpoints before the step ``before``, newest first."""
    query = sa.select(checkpoints).where(checkpoints.c.run == run_id)
    if before is not None:
        query = query.where(checkpoints.c.step < before)
    rows = db.execute(query.order_by(checkpoints.c.step.desc()).limit(limit))
    return [CheckpointRow(**row._mapping) for row in rows]


def downsample(db: sa.Connection, run_id: str) -> int:
    """Delete a run's `metrics` events except those that end an epoch or have a validation loss, and MAX_POINTS others.

    That is as many points as a plot of the curve shows; the run's result file has the whole curve. All other events
    stay, and the remaining events keep their ids.

    Returns:
        The number of deleted events.
    """
    ends = events.c.data["ends_epoch"].as_boolean()
    valid = events.c.data["full_valid_loss"].as_string()
    metrics_events = sa.select(events.c.number, ends, valid).where(events.c.run == run_id, events.c.type == "metrics")
    rows = db.execute(metrics_events.order_by(events.c.number))
    between = [number for number, ends_epoch, valid_loss in rows if not ends_epoch and valid_loss is None]
    deleted = sorted(set(between) - set(spread(between, MAX_POINTS)))
    for start in range(0, len(deleted), DELETE_BATCH):
        chunk = deleted[start : start + DELETE_BATCH]
        db.execute(events.delete().where(events.c.run == run_id, events.c.number.in_(chunk)))
    return len(deleted)


def spread(numbers: Sequence[int], limit: int) -> list[int]:
    """At most ``limit`` (two or more) of ``numbers``, evenly spread and including the first and the last."""
    if len(numbers) <= limit:
        return list(numbers)
    return [numbers[index * (len(numbers) - 1) // (limit - 1)] for index in range(limit)]
