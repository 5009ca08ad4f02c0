"""The tables of jobs.db. Times are Unix seconds; `data`, `metrics`, `body` and `result` are JSON."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

jobs: Final = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False, comment="of the creator"),
    sa.Column("job_key_id", sa.Text, nullable=False, comment="of the key that the job itself has"),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.Column("body", sa.JSON, nullable=False, comment="what was asked for"),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("adapter", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("wanted", sa.Text, nullable=False, comment="run, pause or cancel"),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("queued_at", sa.Float, nullable=False, comment="since when it waits for its turn"),
    sa.Column("looked_at", sa.Float, nullable=False, server_default="0", comment="when its data was last looked at"),
    sa.Column("served_at", sa.Float, nullable=False, server_default="0", comment="when it last had the device"),
    sa.Column("interrupted", sa.Boolean, nullable=False, server_default=sa.false(), comment="goes on before others"),
    sa.Column("not_before", sa.Float, nullable=False, server_default="0", comment="a killed worker's back-off"),
    sa.Column("kills", sa.Integer, nullable=False, server_default="0", comment="in a row, without progress"),
    sa.Column("progress", sa.Text, nullable=False, server_default="", comment="what there was at the last kill"),
    sa.Column("events_offset", sa.Integer, nullable=False, server_default="0", comment="bytes of events.jsonl read"),
    sa.Column("next_event", sa.Integer, nullable=False, server_default="1"),
    sa.Column("plan", sa.JSON(none_as_null=True), comment="once the data were looked at"),
    sa.Column("report", sa.JSON(none_as_null=True), comment="the quality report in short"),
    sa.Column("estimated_finish", sa.Integer),
    sa.Column("pauses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("paused_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("device_s", sa.Float, nullable=False, server_default="0", comment="how long it has had the device"),
    sa.Column("finished_at", sa.Integer),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("result_files", sa.JSON, nullable=False),
    sa.Column("cleared", sa.Boolean, nullable=False, server_default=sa.false(), comment="its big files are gone"),
    sa.Index("ix_jobs_project_number", "project", "number"),
    sa.Index("ix_jobs_status", "status"),
    sa.Index("ix_jobs_project_looked", "project", "looked_at"),
    sa.Index("ix_jobs_project_served", "project", "served_at"),
    sqlite_autoincrement=True,
)

events: Final = sa.Table(
    "events",
    metadata,
    sa.Column("job", sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False, comment="from 1, in the order of the job"),
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
    sa.Column("job", sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)

idempotency: Final = sa.Table(
    "idempotency",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("job", sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Index("ix_idempotency_at", "at"),
    sqlite_with_rowid=False,
)
