"""Verdicts of evaluations on versions."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt, ComparableJson

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "verdicts",
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("version_id", BigInt, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("sentence", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("examples", BigInt, nullable=False),
        sa.Column("evaluation_id", sa.Text),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("evaluation", sa.JSON),
        sa.Column("base", ComparableJson, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_verdicts"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_verdicts_version_id"),
        sa.UniqueConstraint("id", name="uq_verdicts_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_verdicts_version_id_kind_seq", "verdicts", ["version_id", "kind", "seq"])
