"""The tables of stores. Times are Unix seconds."""

from __future__ import annotations

import sqlalchemy as sa

from adapters.database.types import BigInt
from service.access.tables import projects
from service.database import metadata

stores = sa.Table(
    "stores",
    metadata,
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, sa.ForeignKey(projects.c.id), nullable=False),
    sa.Column("name", sa.Text),
    sa.Column("description", sa.Text),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Column("last_active_at", BigInt, nullable=False),
    sa.Index("ix_stores_project_seq", "project", "seq"),
    sqlite_autoincrement=True,
)

store_files = sa.Table(
    "store_files",
    metadata,
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("store", BigInt, sa.ForeignKey(stores.c.seq, ondelete="CASCADE"), nullable=False),
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
    # names the document in the store's passage file that is found; null: none is
    sa.Column("generation", sa.Text),
    # the one that is being written, or waits to be; null: none
    sa.Column("wanted", sa.Text),
    # the embedding model of `generation`
    sa.Column("model", sa.Text),
    sa.UniqueConstraint("store", "file_id"),
    sa.Index("ix_store_files_store_seq", "store", "seq"),
    sa.Index("ix_store_files_status", "status"),
    sa.Index("ix_store_files_batch_id", "batch_id"),
    sqlite_autoincrement=True,
)

store_batches = sa.Table(
    "store_batches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("store", BigInt, sa.ForeignKey(stores.c.seq, ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Column("cancelled", sa.Boolean, nullable=False),
    sa.Index("ix_store_batches_store", "store"),
)
