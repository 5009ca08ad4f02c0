"""Reviews without a judge, by one reviewer or several: choices have a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("queues", sa.Column("reviewers", sa.Integer, nullable=False, server_default="1"))
    op.add_column("queues", sa.Column("differing", sa.Integer))
    op.add_column("queues", sa.Column("alike", sa.Integer))
    op.create_table(
        "choices",
        sa.Column("pair", sa.Integer, sa.ForeignKey("pairs.number"), primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("choice", sa.Text, nullable=False),
        sa.Column("first_is", sa.Text, nullable=False),
        sa.Column("chosen_at", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO choices (pair, key_id, choice, first_is, chosen_at) "
        "SELECT number, COALESCE(key_id, ''), choice, first_is, COALESCE(chosen_at, 0) "
        "FROM pairs WHERE choice IS NOT NULL"
    )
    for name in ("choice", "key_id", "chosen_at"):
        op.drop_column("pairs", name)
    op.add_column("pairs", sa.Column("unit", sa.Integer))
