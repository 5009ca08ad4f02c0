"""Which versions were judged on which held-out examples, so that repeated looks are counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "looks",
        sa.Column("number", BigInt, primary_key=True, autoincrement=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("examples", sa.LargeBinary, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.UniqueConstraint("run", "digest"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_looks_project", "looks", ["project"])
