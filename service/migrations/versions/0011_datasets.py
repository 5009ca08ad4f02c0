"""Datasets: names with numbered versions, each of which is an uploaded file."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", BigInt, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("next_version", BigInt, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_datasets_project"),
        sa.UniqueConstraint("project", "name", name="uq_datasets_project_name"),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("id", BigInt, nullable=False),
        sa.Column("dataset_id", BigInt, nullable=False),
        sa.Column("number", BigInt, nullable=False),
        sa.Column("file_id", sa.Text, nullable=False),
        sa.Column("rows", BigInt, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dataset_versions"),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_dataset_versions_dataset_id"),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name="fk_dataset_versions_file_id"),
        sa.UniqueConstraint("dataset_id", "number", name="uq_dataset_versions_dataset_id_number"),
    )
