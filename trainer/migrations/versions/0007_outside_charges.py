"""What endpoints outside were asked, and what they charged, by hour. What earlier releases asked is not known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outside_charges",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("endpoint", sa.Text, primary_key=True),
        sa.Column("hour", BigInt, primary_key=True, autoincrement=False),
        sa.Column("requests", BigInt, nullable=False),
        sa.Column("prompt_tokens", BigInt, nullable=False),
        sa.Column("completion_tokens", BigInt, nullable=False),
        sa.Column("money", sa.Float, nullable=False),
        sa.Column("unpriced", BigInt, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_outside_charges_hour", "outside_charges", ["hour"])
