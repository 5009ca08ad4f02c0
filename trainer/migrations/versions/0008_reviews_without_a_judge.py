"""Reviews without a judge, by one reviewer or several: choices have a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("queues", sa.Column("reviewers", BigInt, nullable=False, server_default="1"))
    op.add_column("queues", sa.Column("differing", BigInt))
    op.add_column("queues", sa.Column("alike", BigInt))
    op.create_table(
        "choices",
        sa.Column("pair", BigInt, sa.ForeignKey("pairs.number"), primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("choice", sa.Text, nullable=False),
        sa.Column("first_is", sa.Text, nullable=False),
        sa.Column("chosen_at", BigInt, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO choices (pair, key_id, choice, first_is, chosen_at) "
        "SELECT number, COALESCE(key_id, ''), choice, first_is, COALESCE(chosen_at, 0) "
        "FROM pairs WHERE choice IS NOT NULL"
    )
    for name in ("choice", "key_id", "chosen_at"):
        op.drop_column("pairs", name)
    op.add_column("pairs", sa.Column("unit", BigInt))
