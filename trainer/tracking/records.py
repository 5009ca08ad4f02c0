"""How far each tracker has followed each job. Each function runs inside ``Database.run``.

The queue is the journal itself: a row says up to which event it has been sent, so nothing is stored twice, and nothing
grows while a tracker is down.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from adapters.database.types import BigInt
from trainer.database import metadata


class TrackingState(StrEnum):
    """Whether a job is still followed, and how it ended."""

    OPEN = "open"
    DONE = "done"
    GIVEN_UP = "given_up"


tracked: Final = sa.Table(
    "tracked_runs",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("tracker", sa.Text, primary_key=True),
    sa.Column("external_id", sa.Text, comment="the tracker's id of it, once it has one"),
    sa.Column("sent", BigInt, nullable=False, server_default="0", comment="the number of the last event sent"),
    sa.Column("state", sa.Text, nullable=False, server_default=TrackingState.OPEN.value),
    sa.Column("tries", BigInt, nullable=False, server_default="0", comment="failed ones in a row"),
    sa.Column("not_before", sa.Float, nullable=False, server_default="0", comment="of the next attempt, Unix seconds"),
    sa.Index("ix_tracked_runs_state_not_before", "state", "not_before"),
    sqlite_with_rowid=False,
)


@dataclass(frozen=True, slots=True)
class TrackedRow:
    """A row of `tracked_runs`."""

    run: str
    tracker: str
    external_id: str | None
    sent: int
    state: str
    tries: int
    not_before: float


def add(db: sa.Connection, run_id: str, tracker: str) -> None:
    """Have a run followed by a tracker."""
    db.execute(tracked.insert().values(run=run_id, tracker=tracker))


def due(db: sa.Connection, *, now: float, limit: int) -> list[TrackedRow]:
    """At most ``limit`` rows whose next attempt is due, the longest waiting first."""
    query = sa.select(tracked).where(tracked.c.state == TrackingState.OPEN, tracked.c.not_before <= now)
    return [TrackedRow(**row._mapping) for row in db.execute(query.order_by(tracked.c.not_before).limit(limit))]


def change(db: sa.Connection, row: TrackedRow, **values: Any) -> None:
    """Update columns of a row."""
    db.execute(tracked.update().where(tracked.c.run == row.run, tracked.c.tracker == row.tracker).values(**values))
