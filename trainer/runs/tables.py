"""The tables of runs, all kinds in one. Times are Unix seconds; a kind's own part of a run is JSON."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from adapters.database.types import BigInt
from trainer.database import metadata

runs: Final = sa.Table(
    "runs",
    metadata,
    sa.Column("number", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False, comment="of the creator"),
    sa.Column("run_key_id", sa.Text, nullable=False, comment="of the key that the run itself has"),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Column("body", sa.JSON, nullable=False, comment="what was asked for"),
    sa.Column("adapters", sa.JSON, nullable=False, comment="names: who may not use one of them does not see the run"),
    sa.Column("details", sa.JSON, nullable=False, comment="what the kind adds; `Kind` says in which schema"),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("wanted", sa.Text, nullable=False, comment="run, pause or cancel"),
    sa.Column("queued_at", sa.Float, nullable=False, comment="since when it waits for its turn"),
    sa.Column("looked_at", sa.Float, nullable=False, server_default="0", comment="when its data was last looked at"),
    sa.Column("served_at", sa.Float, nullable=False, server_default="0", comment="when its turn last came"),
    sa.Column("interrupted", sa.Boolean, nullable=False, server_default=sa.false(), comment="goes on before others"),
    sa.Column("not_before", sa.Float, nullable=False, server_default="0", comment="a killed worker's back-off"),
    sa.Column("kills", BigInt, nullable=False, server_default="0", comment="in a row, without progress"),
    sa.Column("progress", sa.Text, nullable=False, server_default="", comment="what there was at the last kill"),
    sa.Column("events_offset", BigInt, nullable=False, server_default="0", comment="bytes of events.jsonl read"),
    sa.Column("next_event", BigInt, nullable=False, server_default="1"),
    sa.Column("estimated_finish", BigInt),
    sa.Column("pauses", BigInt, nullable=False, server_default="0"),
    sa.Column("paused_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("device_s", sa.Float, nullable=False, server_default="0", comment="how long it has had the device"),
    sa.Column("finished_at", BigInt),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("cleared", sa.Boolean, nullable=False, server_default=sa.false(), comment="its big files are gone"),
    sa.Column("parent", sa.Text, sa.ForeignKey("runs.id"), comment="the run that started it and waits for it"),
    sa.Column("stores", sa.JSON(none_as_null=True), comment="`StoreNames` of those whose passages it may show"),
    sa.Index("ix_runs_kind_project_number", "kind", "project", "number"),
    sa.Index("ix_runs_status", "status"),
    sa.Index("ix_runs_kind_project_looked", "kind", "project", "looked_at"),
    sa.Index("ix_runs_kind_project_served", "kind", "project", "served_at"),
    sa.Index("ix_runs_parent", "parent"),
    sqlite_autoincrement=True,
)

events: Final = sa.Table(
    "events",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("number", BigInt, primary_key=True, autoincrement=False, comment="from 1, in the order of the run"),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)

checkpoints: Final = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("step", BigInt, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)

idempotency: Final = sa.Table(
    "idempotency",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Index("ix_idempotency_at", "at"),
    sqlite_with_rowid=False,
)
