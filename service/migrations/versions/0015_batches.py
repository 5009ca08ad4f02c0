"""Batches: files of inference requests that are answered in the background."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file_id", sa.Text, nullable=False),
        sa.Column("completion_window", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("output_expires_s", BigInt),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("ending", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("errors", sa.JSON),
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
        sa.PrimaryKeyConstraint("seq", name="pk_batches"),
        sa.UniqueConstraint("id", name="uq_batches_id"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_batches_project"),
        sa.ForeignKeyConstraint(["input_file_id"], ["files.id"], name="fk_batches_input_file_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_batches_project_seq", "batches", ["project", "seq"])
    op.create_index("ix_batches_status", "batches", ["status"])
