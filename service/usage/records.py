"""The SQL of usage: units of work over one connection, run by ``service.database`` in a transaction of their own."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, TypeAlias

import sqlalchemy as sa

from adapters.database.sql import Insert, insert_for
from adapters.database.types import BigInt
from service.access.audit import ADMIN_ID
from service.access.tables import keys
from service.database import metadata

usage = sa.Table(
    "usage",
    metadata,
    # Unix seconds of the hour's beginning
    sa.Column("hour", BigInt, primary_key=True, autoincrement=False),
    # no foreign keys: what was used stays on the bill when the key, the adapter or the project is gone
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True),
    # the served name of the base or the embedder where no adapter was asked for; empty where the model's name stood for
    # nothing
    sa.Column("adapter", sa.Text, primary_key=True),
    # 0 where there is none
    sa.Column("version", BigInt, primary_key=True, autoincrement=False),
    sa.Column("requests", BigInt, nullable=False),
    sa.Column("errors", BigInt, nullable=False),
    sa.Column("prompt_tokens", BigInt, nullable=False),
    sa.Column("completion_tokens", BigInt, nullable=False),
    sa.Column("cached_tokens", BigInt, nullable=False),
    # what counted against the key's limits: the engine's count, else the estimate
    sa.Column("charged_tokens", BigInt, nullable=False),
    # the requests' share of the engine's time (service.engine.busy); 0 before it was measured
    sa.Column("engine_s", sa.Float, nullable=False, server_default="0"),
    sa.Index("ix_usage_key_id_hour", "key_id", "hour"),
)
"""One row per hour, project, key and adapter version."""

batches: Final = sa.Table(
    "front_reports",  # at first only fronts numbered what they wrote
    metadata,
    # the id of one start of a front, or of the gateway
    sa.Column("front", sa.Text, primary_key=True),
    # of the last batch that was applied; its writer sends the next one when it knows that this one is
    sa.Column("number", BigInt, nullable=False),
    # Unix seconds
    sa.Column("at", BigInt, nullable=False),
    sa.Index("ix_front_reports_at", "at"),
)
"""Which batches of usage are applied: an answer may be lost, and what is written again must not count again."""
KEPT_S: Final = 7 * 86_400
"""How long it is known which batches of a writer were applied, s; none repeats one for so long."""

_PRIMARY: Final = [column.name for column in usage.primary_key]

RowKey: TypeAlias = tuple[int, str, str, str, int]
"""hour (Unix seconds of its beginning), project, key id, adapter (or the base's name, or nothing), version (or 0)"""
Dimension: TypeAlias = Literal["hour", "project", "key", "adapter", "version"]
DIMENSIONS: Final[tuple[Dimension, ...]] = ("hour", "project", "key", "adapter", "version")
"""All of them, in the order in which rows are sorted."""


@dataclass(slots=True)
class UsageCounts:
    """Usage sums; ``charged_tokens`` counted against the key's limits, ``engine_s`` is a share of the engine's time."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    charged_tokens: int = 0
    engine_s: float = 0.0

    def add(self, counts: UsageCounts) -> None:
        """Add ``counts`` to these, in place."""
        self.requests += counts.requests
        self.errors += counts.errors
        self.prompt_tokens += counts.prompt_tokens
        self.completion_tokens += counts.completion_tokens
        self.cached_tokens += counts.cached_tokens
        self.charged_tokens += counts.charged_tokens
        self.engine_s += counts.engine_s


SHOWN: Final = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(frozen=True, slots=True)
class Selection:
    """A query for usage rows.

    ``start`` and ``end`` are Unix seconds: hours that begin at ``start`` or later and before ``end``. ``width_s`` is
    that of the time buckets. A filter that is None lets everything pass. ``after`` has the values of ``by``, in its
    order, of the last row of the page before.
    """

    start: int
    end: int
    width_s: int
    by: tuple[Dimension, ...]
    project: str | None = None
    key: str | None = None
    adapter: str | None = None
    after: tuple[int | str, ...] | None = None
    limit: int = 100


def begin_batch(db: sa.Connection, writer: str, number: int) -> bool:
    """Note that a batch is applied by this transaction; False if an earlier one has applied it.

    Args:
        writer: The id of one start of a front, or of the gateway.
        number: Larger than that of the writer's batch before.
    """
    now = int(time.time())
    last = db.scalar(sa.select(batches.c.number).where(batches.c.front == writer))
    if last is not None and number <= last:
        return False
    if last is None:
        db.execute(batches.delete().where(batches.c.at < now - KEPT_S))
    db.execute(_note_batch(db.dialect.name), {"front": writer, "number": number, "at": now})
    return True


def add(db: sa.Connection, rows: Mapping[RowKey, UsageCounts]) -> None:
    """Add counts to the stored rows."""
    if not rows:
        return
    values = [
        dict(zip(_PRIMARY, key, strict=True)) | {name: getattr(counts, name) for name in UsageCounts.__slots__}
        for key, counts in rows.items()
    ]
    db.execute(_add_counts(db.dialect.name), values)


# built once: every front's report runs both, and SQLAlchemy takes longer to build them than SQLite to run them


@cache
def _note_batch(dialect: str) -> Insert:
    statement = insert_for(dialect, batches)
    new = {name: statement.excluded[name] for name in ("number", "at")}
    return statement.on_conflict_do_update(index_elements=["front"], set_=new)


@cache
def _add_counts(dialect: str) -> Insert:
    statement = insert_for(dialect, usage)
    sums = {name: usage.c[name] + statement.excluded[name] for name in UsageCounts.__slots__}
    return statement.on_conflict_do_update(index_elements=list(usage.primary_key), set_=sums)


def charged_since(db: sa.Connection, start: int) -> dict[str, int]:
    """Tokens that counted against each key's (by id) limits in the hours since ``start``, Unix seconds.

    What was used with a job's key counted against those of the key that made the job.
    """
    total = sa.func.sum(usage.c.charged_tokens)
    by_itself = sa.or_(keys.c.parent_key_id.is_(None), keys.c.parent_key_id == ADMIN_ID)
    key_id = sa.case((by_itself, usage.c.key_id), else_=keys.c.parent_key_id)
    query = sa.select(key_id, total).select_from(usage.outerjoin(keys, keys.c.id == usage.c.key_id))
    query = query.where(usage.c.hour >= start).group_by(key_id)
    return {key_id: int(tokens) for key_id, tokens in db.execute(query)}


def select(
    db: sa.Connection,
    selection: Selection,
    sums: Sequence[sa.Label[Any]] = (),
    source: sa.FromClause = usage,
    key: sa.ColumnElement[str] = usage.c.key_id,
) -> list[dict[str, Any]]:
    """Up to ``selection.limit`` rows of sums, grouped and sorted by the dimensions in ``selection.by``.

    Args:
        sums: What is added up; without, what ``/v1/usage`` shows.
        source: The table, or a join of it with others.
        key: What stands for the key.
    """
    columns: dict[Dimension, sa.ColumnElement[Any]] = {
        "hour": usage.c.hour - usage.c.hour % selection.width_s,
        "project": usage.c.project,
        "key": key,
        "adapter": usage.c.adapter,
        "version": usage.c.version,
    }
    by = [columns[name] for name in selection.by]
    labelled = (column.label(name) for name, column in zip(selection.by, by, strict=True))
    query = sa.select(*labelled, *(sums or (added(usage.c[name], name) for name in SHOWN))).select_from(source)
    query = query.where(usage.c.hour >= selection.start, usage.c.hour < selection.end)
    filters = (
        (usage.c.project, selection.project),
        (key, selection.key),
        (usage.c.adapter, selection.adapter),
    )
    for column, value in filters:
        if value is not None:
            query = query.where(column == value)
    if selection.after is not None:
        query = query.where(sa.tuple_(*by) > sa.tuple_(*map(sa.literal, selection.after)))
    rows = db.execute(query.group_by(*by).order_by(*by).limit(selection.limit))
    return [dict(row) for row in rows.mappings()]


def added(column: sa.ColumnElement[Any], name: str) -> sa.Label[Any]:
    """The sum of a column under this name; 0 without rows."""
    return sa.func.coalesce(sa.func.sum(column), 0).label(name)


def key_names(db: sa.Connection, key_ids: Collection[str]) -> dict[str, str]:
    """Names of keys by id, including revoked ones; unknown ids are left out."""
    query = sa.select(keys.c.id, keys.c.name).where(keys.c.id.in_(key_ids))
    return {row.id: row.name for row in db.execute(query)}
