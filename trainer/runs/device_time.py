"""How long runs have had the training device, by hour: what a worker computed itself, and how long it judged.

A worker that judges asks the engine through the gateway, which measures that time itself; so the two are kept apart,
and nobody counts a second twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from adapters.database.sql import insert
from adapters.database.types import BigInt
from trainer.database import metadata
from trainer.runs.state import Run, Status
from trainer.runs.tables import runs

HOUR_S: Final = 3600

device_time: Final = sa.Table(
    "device_time",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("hour", BigInt, primary_key=True, autoincrement=False, comment="Unix seconds of its beginning"),
    sa.Column("training_s", sa.Float, nullable=False),
    sa.Column("judging_s", sa.Float, nullable=False),
    sa.Index("ix_device_time_hour", "hour"),
    sqlite_with_rowid=False,
)


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """Seconds of one run in one hour (Unix seconds of its beginning)."""

    run: Run
    hour: int
    training_s: float
    judging_s: float


def by_hour(start: float, end: float, judging_since: float | None) -> Iterator[tuple[int, float, float]]:
    """(hour, training seconds, judging seconds) of a worker's time from ``start`` to ``end``, Unix seconds.

    Args:
        judging_since: From then on it judges; None: not yet.
    """
    border = end if judging_since is None else min(max(judging_since, start), end)
    hour = int(start) - int(start) % HOUR_S
    while hour < end:
        since, until = max(start, hour), min(end, hour + HOUR_S)
        trained = max(0.0, min(border, until) - since)
        yield hour, trained, until - since - trained
        hour += HOUR_S


def add(db: sa.Connection, run_id: str, start: float, end: float, judging_since: float | None) -> None:
    """Add a worker's time to what is recorded."""
    statement = insert(db, device_time)
    names = ("training_s", "judging_s")
    counted = {name: device_time.c[name] + statement.excluded[name] for name in names}
    rows = [
        {"run": run_id, "hour": hour, "training_s": trained, "judging_s": judged}
        for hour, trained, judged in by_hour(start, end, judging_since)
    ]
    if rows:
        db.execute(statement.on_conflict_do_update(index_elements=["run", "hour"], set_=counted), rows)


def recorded(db: sa.Connection, start: int, end: int) -> list[DeviceTime]:
    """The time of all projects' runs in the hours that begin at ``start`` or later and before ``end``."""
    query = (
        sa.select(device_time, runs)
        .join(runs, runs.c.id == device_time.c.run)
        .where(device_time.c.hour >= start, device_time.c.hour < end)
        .order_by(device_time.c.hour, runs.c.number)
    )
    return [DeviceTime(Run.of(row), row.hour, row.training_s, row.judging_s) for row in db.execute(query)]


def of_run(db: sa.Connection, run_id: str) -> tuple[float, float]:
    """A run's (training, judging) seconds."""
    sums = (sa.func.coalesce(sa.func.sum(device_time.c[name]), 0.0) for name in ("training_s", "judging_s"))
    row = db.execute(sa.select(*sums).where(device_time.c.run == run_id)).one()
    return float(row[0]), float(row[1])


def under_way(db: sa.Connection, kinds: Collection[str]) -> list[Run]:
    """The runs of these kinds whose worker has the device now, whose time is recorded when the worker exits."""
    query = sa.select(runs).where(runs.c.kind.in_(kinds), runs.c.status == Status.RUNNING)
    return [Run.of(row) for row in db.execute(query)]


def so_far(
    workers: Collection[Run], judging: Mapping[str, float | None], start: int, end: int, now: float
) -> list[DeviceTime]:
    """The time of workers that run, up to ``now``, in the hours from ``start`` to ``end``.

    Args:
        judging: Since when each run's worker has judged, by the run's id; None: not yet.
    """
    return [
        DeviceTime(run, hour, trained, judged)
        for run in workers
        for hour, trained, judged in by_hour(run.served_at, now, judging[run.id])
        if start <= hour < end
    ]
