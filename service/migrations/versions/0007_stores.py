"""Vector stores, their files and batches; the passages are in files of their own."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stores",
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("description", sa.Text),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("last_active_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_stores"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_stores_project"),
        sa.UniqueConstraint("id", name="uq_stores_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_stores_project_seq", "stores", ["project", "seq"])
    op.create_table(
        "store_files",
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("store", BigInt, nullable=False),
        sa.Column("file_id", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("chunk_size", BigInt, nullable=False),
        sa.Column("chunk_overlap", BigInt, nullable=False),
        sa.Column("batch_id", sa.Text),
        sa.Column("passages", BigInt, nullable=False),
        sa.Column("usage_bytes", BigInt, nullable=False),
        sa.Column("generation", sa.Text),
        sa.Column("wanted", sa.Text),
        sa.Column("model", sa.Text),
        sa.PrimaryKeyConstraint("seq", name="pk_store_files"),
        sa.ForeignKeyConstraint(["store"], ["stores.seq"], name="fk_store_files_store", ondelete="CASCADE"),
        sa.UniqueConstraint("store", "file_id", name="uq_store_files_store_file_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_store_files_store_seq", "store_files", ["store", "seq"])
    op.create_index("ix_store_files_status", "store_files", ["status"])
    op.create_index("ix_store_files_batch_id", "store_files", ["batch_id"])
    op.create_table(
        "store_batches",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("store", BigInt, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("cancelled", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_store_batches"),
        sa.ForeignKeyConstraint(["store"], ["stores.seq"], name="fk_store_batches_store", ondelete="CASCADE"),
    )
    op.create_index("ix_store_batches_store", "store_batches", ["store"])
