"""What the operator's endpoints outside were asked, and what they charged, by hour: teachers, judges and compared arms.

A teacher is asked by the trainer itself, which records each answer; judges and arms are asked by workers, whose events
of the type ``charge`` are recorded here as they are read, each once. An amount is that of the price at that time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from adapters.database.sql import insert
from adapters.database.types import BigInt
from trainer.database import metadata
from trainer.runs.device_time import HOUR_S
from trainer.runs.protocol import OutsideCharge
from trainer.runs.state import UNDER_WAY, Run
from trainer.runs.tables import runs

NO_RUN: Final = ""

outside_charges: Final = sa.Table(
    "outside_charges",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True, comment="of who asked, or of who created the run"),
    sa.Column("run", sa.Text, primary_key=True, comment="empty: a key asked on its own"),
    sa.Column("endpoint", sa.Text, primary_key=True, comment="its name in the operator's settings"),
    sa.Column("hour", BigInt, primary_key=True, autoincrement=False, comment="Unix seconds of its beginning"),
    sa.Column("requests", BigInt, nullable=False),
    sa.Column("prompt_tokens", BigInt, nullable=False),
    sa.Column("completion_tokens", BigInt, nullable=False),
    sa.Column("money", sa.Float, nullable=False, comment="without what `unpriced` requests cost"),
    sa.Column("unpriced", BigInt, nullable=False, comment="requests whose cost is not known"),
    sa.Index("ix_outside_charges_hour", "hour"),
    sqlite_with_rowid=False,
)
_SUMS: Final = ("requests", "prompt_tokens", "completion_tokens", "money", "unpriced")


@dataclass(frozen=True, slots=True)
class Payer:
    """On whose bill a request to an endpoint outside is. ``run``: NO_RUN if a key asked on its own."""

    project: str
    key_id: str
    run: str = NO_RUN


@dataclass(frozen=True, slots=True)
class ChargedHour:
    """What one payer was charged by one endpoint in one hour (Unix seconds of its beginning).

    ``run``: None if a key asked on its own. ``money`` is without the cost of ``unpriced`` requests, which is not known.
    """

    payer: Payer
    run: Run | None
    endpoint: str
    hour: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    unpriced: int


def payer_of(db: sa.Connection, project: str, key_id: str) -> Payer:
    """Who pays for what a key asks: a run's own key stands for the run and for the key that created it."""
    query = sa.select(runs.c.id, runs.c.key_id).where(
        runs.c.status.in_(UNDER_WAY), runs.c.project == project, runs.c.run_key_id == key_id, runs.c.parent.is_(None)
    )
    run = db.execute(query.limit(1)).first()
    return Payer(project, key_id) if run is None else Payer(project, run.key_id, run.id)


def add(db: sa.Connection, payer: Payer, charge: OutsideCharge, at: float) -> None:
    """Add one request that was answered at that time, Unix seconds."""
    values = {
        "requests": 1,
        "prompt_tokens": charge.prompt_tokens,
        "completion_tokens": charge.completion_tokens,
        "money": charge.money or 0.0,
        "unpriced": int(charge.money is None),
    }
    key: dict[str, str | int] = {"project": payer.project, "key_id": payer.key_id, "run": payer.run}
    key |= {"endpoint": charge.endpoint, "hour": int(at) - int(at) % HOUR_S}
    statement = insert(db, outside_charges).values(**key, **values)
    counted = {name: outside_charges.c[name] + statement.excluded[name] for name in _SUMS}
    db.execute(statement.on_conflict_do_update(index_elements=list(key), set_=counted))


def recorded(db: sa.Connection, start: int, end: int) -> list[ChargedHour]:
    """What all projects were charged in the hours that begin at ``start`` or later and before ``end``."""
    in_period = outside_charges.c.hour >= start, outside_charges.c.hour < end
    ids = sa.select(outside_charges.c.run).where(*in_period)
    known = {run.id: run for run in map(Run.of, db.execute(sa.select(runs).where(runs.c.id.in_(ids))))}
    query = sa.select(outside_charges).where(*in_period).order_by(outside_charges.c.hour, outside_charges.c.run)
    return [
        ChargedHour(
            Payer(row.project, row.key_id, row.run),
            known.get(row.run),
            row.endpoint,
            row.hour,
            **{name: getattr(row, name) for name in _SUMS},
        )
        for row in db.execute(query)
    ]
