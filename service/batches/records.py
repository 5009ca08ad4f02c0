"""The table of batches and its SQL: units of work over one connection, run by ``service.database`` in a transaction of
their own. Times are Unix seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from adapters.database.types import BigInt
from service.access.caller import Caller
from service.access.tables import projects
from service.database import metadata
from service.files.tables import files

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Ending = Literal["failed", "completed", "expired", "cancelled"]
COUNTS: Final = ("completed", "failed", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
"""Columns of what a batch has done."""
UNFINISHED: Final = ("validating", "in_progress", "finalizing", "cancelling")

batches = sa.Table(
    "batches",
    metadata,
    # the order of creation, which the pages of a list follow
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, sa.ForeignKey(projects.c.id), nullable=False),
    # whose rights and limits its requests have. No foreign key: the admin key has no row
    sa.Column("key_id", sa.Text, nullable=False),
    # the admin key's HMAC then, where that key made it: its rights end when it is replaced
    sa.Column("admin_hmac", sa.LargeBinary),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("input_file_id", sa.Text, sa.ForeignKey(files.c.id), nullable=False),
    sa.Column("completion_window", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON(none_as_null=True)),
    # how long its result files stay on the list, s; null: until they are deleted
    sa.Column("output_expires_s", BigInt),
    sa.Column("status", sa.Text, nullable=False),
    # the status that it is about to end with, once that is decided: what is still to be written depends on it
    sa.Column("ending", sa.Text),
    # what all its requests name as their model; null where they differ
    sa.Column("model", sa.Text),
    sa.Column("errors", sa.JSON(none_as_null=True)),
    sa.Column("total", BigInt, nullable=False),
    sa.Column("completed", BigInt, nullable=False),
    sa.Column("failed", BigInt, nullable=False),
    sa.Column("input_tokens", BigInt, nullable=False),
    sa.Column("cached_tokens", BigInt, nullable=False),
    sa.Column("output_tokens", BigInt, nullable=False),
    sa.Column("reasoning_tokens", BigInt, nullable=False),
    sa.Column("output_file_id", sa.Text),
    sa.Column("error_file_id", sa.Text),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Column("expires_at", BigInt, nullable=False),
    sa.Column("in_progress_at", BigInt),
    sa.Column("finalizing_at", BigInt),
    sa.Column("cancelling_at", BigInt),
    sa.Column("ended_at", BigInt),
    sa.Index("ix_batches_project_seq", "project", "seq"),
    sa.Index("ix_batches_status", "status"),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as it is stored. While it runs, what it has done is in its directory, and its counts here are those of
    its last change of status."""

    id: str
    project: str
    key_id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    output_expires_s: int | None
    created_at: int
    expires_at: int
    admin_hmac: bytes | None = None
    status: Status = "validating"
    ending: Ending | None = None
    model: str | None = None
    errors: list[dict[str, Any]] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    ended_at: int | None = None


_COLUMNS: Final = [batches.c[name] for name in BatchRow.__dataclass_fields__]


def add(db: sa.Connection, row: BatchRow) -> None:
    """Insert a batch."""
    db.execute(batches.insert().values({name: getattr(row, name) for name in BatchRow.__dataclass_fields__}))


def find(db: sa.Connection, batch_id: str, caller: Caller | None = None) -> BatchRow | None:
    """The batch, if the caller may see it; None: whoever asks."""
    seen = sa.true() if caller is None else _visible(caller)
    row = db.execute(sa.select(*_COLUMNS).where(batches.c.id == batch_id, seen)).one_or_none()
    return None if row is None else BatchRow(**row._mapping)


def page(db: sa.Connection, caller: Caller, after: str | None, limit: int) -> list[BatchRow] | None:
    """Up to ``limit`` batches that the caller may see, newest first; None where ``after`` is the id of none of them."""
    query = sa.select(*_COLUMNS).where(_visible(caller)).order_by(batches.c.seq.desc()).limit(limit)
    if after is not None:
        cursor = db.scalar(sa.select(batches.c.seq).where(_visible(caller), batches.c.id == after))
        if cursor is None:
            return None
        query = query.where(batches.c.seq < cursor)
    return [BatchRow(**row._mapping) for row in db.execute(query)]


def update(db: sa.Connection, batch_id: str, **values: Any) -> BatchRow:
    """Change columns of a batch; returns it as it is now."""
    query = batches.update().where(batches.c.id == batch_id).values(values).returning(*_COLUMNS)
    return BatchRow(**db.execute(query).one()._mapping)


def unfinished(db: sa.Connection) -> Sequence[BatchRow]:
    """All batches that have not ended, oldest first."""
    query = sa.select(*_COLUMNS).where(batches.c.status.in_(UNFINISHED)).order_by(batches.c.seq)
    return [BatchRow(**row._mapping) for row in db.execute(query)]


def count_unfinished(db: sa.Connection, project: str) -> int:
    """How many batches of a project have not ended."""
    chosen = sa.and_(batches.c.project == project, batches.c.status.in_(UNFINISHED))
    return int(db.scalar(sa.select(sa.func.count()).select_from(batches).where(chosen)) or 0)


def _visible(caller: Caller) -> sa.ColumnElement[bool]:
    """A key with globs or filters sees what it has created itself; others see all of their project."""
    narrowed = caller.adapters is not None or caller.stores is not None or bool(caller.filters)
    own = batches.c.key_id == caller.key_id if narrowed else sa.true()
    return sa.and_(batches.c.project == caller.project, own)
