"""The tables of datasets. Times are Unix seconds."""

from __future__ import annotations

import sqlalchemy as sa

from adapters.database.types import BigInt
from service.access.tables import projects
from service.database import metadata
from service.files.tables import files

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("project", sa.Text, sa.ForeignKey(projects.c.id), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    # a name without versions does not exist for anyone; its row stays, so that a number is never given twice:
    # `support@3` in a lineage means one thing
    sa.Column("next_version", BigInt, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    sa.UniqueConstraint("project", "name"),
)

dataset_versions = sa.Table(
    "dataset_versions",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("dataset_id", BigInt, sa.ForeignKey(datasets.c.id), nullable=False),
    sa.Column("number", BigInt, nullable=False),
    sa.Column("file_id", sa.Text, sa.ForeignKey(files.c.id), nullable=False),
    sa.Column("rows", BigInt, nullable=False),
    sa.Column("note", sa.Text),
    # who pushed it. No foreign key: the admin key has no row
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    sa.UniqueConstraint("dataset_id", "number"),
)
