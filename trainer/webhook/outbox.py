"""The events that the operator's webhook has yet to be told. Each function runs inside ``Database.run``.

An event is written in the transaction that ends its run, so that neither is there without the other.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from adapters.database.sql import insert
from adapters.database.types import BigInt
from trainer.database import metadata

PAYLOAD_VERSION: Final = 1
"""Of the payload: fields may be added under the same number."""
MAX_WAITING: Final = 10_000
"""Events that wait at most; beyond, the oldest are given up."""

events: Final = sa.Table(
    "webhook_events",
    metadata,
    sa.Column("number", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("body", sa.Text, nullable=False, comment="as it is sent, in every attempt the same"),
    sa.Column("tries", BigInt, nullable=False, server_default="0"),
    sa.Column("not_before", sa.Float, nullable=False, server_default="0", comment="of the next attempt, Unix seconds"),
    sa.Index("ix_webhook_events_not_before", "not_before"),
    sqlite_autoincrement=True,
)

totals: Final = sa.Table(
    "webhook_totals",
    metadata,
    sa.Column("outcome", sa.Text, primary_key=True),
    sa.Column("count", BigInt, nullable=False),
    sqlite_with_rowid=False,
)


class Outcome(StrEnum):
    """What became of an event."""

    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event that is to be sent; ``tries`` have failed."""

    number: int
    id: str
    body: str
    tries: int
    not_before: float


def add(db: sa.Connection, event_type: str, data: dict[str, Any]) -> str:
    """Add an event; returns its id.

    The payload has the form of OpenAI's webhooks: `object`, `id`, `type`, `created_at`, `data`; and our `version`.
    """
    event_id = f"evt_{secrets.token_hex(16)}"
    payload = {
        "object": "event",
        "id": event_id,
        "type": event_type,
        "created_at": int(time.time()),
        "version": PAYLOAD_VERSION,
        "data": data,
    }
    db.execute(events.insert().values(id=event_id, body=json.dumps(payload)))
    excess = waiting(db) - MAX_WAITING
    if excess > 0:
        oldest = sa.select(events.c.number).order_by(events.c.number).limit(excess)
        db.execute(events.delete().where(events.c.number.in_(oldest)))
        _count(db, Outcome.FAILED, excess)
    return event_id


def due(db: sa.Connection, *, now: float, limit: int) -> list[WaitingEvent]:
    """At most ``limit`` events whose next attempt is due, the oldest first."""
    query = sa.select(events).where(events.c.not_before <= now).order_by(events.c.not_before, events.c.number)
    return [WaitingEvent(**row._mapping) for row in db.execute(query.limit(limit))]


def next_at(db: sa.Connection) -> float | None:
    """When the next attempt is due, Unix seconds; None if no event waits."""
    value = db.execute(sa.select(sa.func.min(events.c.not_before))).scalar()
    return None if value is None else float(value)


def postpone(db: sa.Connection, event: WaitingEvent, not_before: float) -> None:
    """Record a failed attempt, and when the next is due."""
    values = {"tries": event.tries + 1, "not_before": not_before}
    db.execute(events.update().where(events.c.number == event.number).values(values))


def settle(db: sa.Connection, event: WaitingEvent, outcome: Outcome) -> None:
    """Remove an event for good and count its outcome."""
    if db.execute(events.delete().where(events.c.number == event.number)).rowcount:
        _count(db, outcome, 1)


def clear(db: sa.Connection) -> int:
    """Remove all events; returns how many there were."""
    return int(db.execute(events.delete()).rowcount)


def waiting(db: sa.Connection) -> int:
    """The number of events that wait."""
    return int(db.execute(sa.select(sa.func.count()).select_from(events)).scalar_one())


def counts(db: sa.Connection) -> dict[str, int]:
    """How many events were delivered and given up, ever, and how many wait: `delivered`, `failed`, `waiting`."""
    ever = {str(row[0]): int(row[1]) for row in db.execute(sa.select(totals.c.outcome, totals.c["count"]))}
    return {outcome.value: ever.get(outcome.value, 0) for outcome in Outcome} | {"waiting": waiting(db)}


def _count(db: sa.Connection, outcome: Outcome, number: int) -> None:
    statement = insert(db, totals).values(outcome=outcome.value, count=number)
    db.execute(statement.on_conflict_do_update(index_elements=["outcome"], set_={"count": totals.c["count"] + number}))
