"""Weights that a project has brought into the store: they take room there, also once no version has them any more."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "project_weights",
        sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    # those of deleted versions, too; the registry forgets at its start what is not in the store
    op.execute(
        "INSERT INTO project_weights (project, digest, bytes) "
        "SELECT adapters.project, versions.digest, MAX(versions.bytes) "
        "FROM versions JOIN adapters ON adapters.id = versions.adapter_id "
        "WHERE versions.digest <> '' GROUP BY adapters.project, versions.digest"
    )
