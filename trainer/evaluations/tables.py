"""The tables of evaluations.db. Times are Unix seconds; `body`, `context` and `result` are JSON."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

evaluations: Final = sa.Table(
    "evaluations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False, comment="of the creator"),
    sa.Column("job_key_id", sa.Text, nullable=False, comment="of the key that the evaluation itself has"),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.Column("body", sa.JSON, nullable=False, comment="what was asked for"),
    sa.Column("arms", sa.JSON, nullable=False, comment="each one's label and what it stands for"),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("wanted", sa.Text, nullable=False, comment="run or cancel"),
    sa.Column("queued_at", sa.Float, nullable=False, comment="since when it waits for its turn"),
    sa.Column("served_at", sa.Float, nullable=False, server_default="0", comment="when it last had its turn"),
    sa.Column("interrupted", sa.Boolean, nullable=False, server_default=sa.false(), comment="goes on before others"),
    sa.Column("not_before", sa.Float, nullable=False, server_default="0", comment="a killed worker's back-off"),
    sa.Column("kills", sa.Integer, nullable=False, server_default="0", comment="in a row, without progress"),
    sa.Column("progress", sa.Text, nullable=False, server_default="", comment="what there was at the last kill"),
    sa.Column("finished_at", sa.Integer),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("cleared", sa.Boolean, nullable=False, server_default=sa.false(), comment="its big files are gone"),
    sa.Index("ix_evaluations_project_number", "project", "number"),
    sa.Index("ix_evaluations_status", "status"),
    sa.Index("ix_evaluations_project_served", "project", "served_at"),
    sqlite_autoincrement=True,
)

idempotency: Final = sa.Table(
    "idempotency",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("job", sa.ForeignKey("evaluations.id"), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Index("ix_idempotency_at", "at"),
    sqlite_with_rowid=False,
)

STEPS: Final = (metadata.create_all,)
"""See `trainer.jobs.database.STEPS`."""
