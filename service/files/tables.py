"""The tables of files. Times are Unix seconds."""

from __future__ import annotations

import sqlalchemy as sa

from adapters.database.types import BigInt
from service.access.tables import projects
from service.database import metadata

files = sa.Table(
    "files",
    metadata,
    # the order of creation, which the pages of a list follow
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, sa.ForeignKey(projects.c.id), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("bytes", BigInt, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    # when it leaves the list by itself; null: never
    sa.Column("expires_at", BigInt),
    # since when it is off the list; its row stays, so that a lineage can still say what it was
    sa.Column("deleted_at", BigInt),
    # since when its bytes are no longer kept
    sa.Column("gone_at", BigInt),
    # who uploaded it; null where that is not known. No foreign key: the admin key has no row
    sa.Column("key_id", sa.Text),
    sa.Index("ix_files_project_seq", "project", "seq"),
    sqlite_autoincrement=True,
)

file_holds = sa.Table(
    "file_holds",
    metadata,
    sa.Column("file_id", sa.Text, sa.ForeignKey(files.c.id), primary_key=True),
    # `version` (of an adapter) and `dataset` with `name@number`, both of the file's project; `store` with a store's id,
    # `key` with the id of a job's key, `batch` with that of a batch that has not ended
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, primary_key=True),
    sa.Index("ix_file_holds_kind_holder", "kind", "holder"),
)

# what globs are held against; the table is that of `service.knowledge`, which stands above this room
stores = sa.table("stores", sa.column("id"), sa.column("project"), sa.column("name"))
