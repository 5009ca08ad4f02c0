"""Events that the operator's webhook has yet to be told, and how many were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_events",
        sa.Column("number", BigInt, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("tries", BigInt, nullable=False, server_default="0"),
        sa.Column("not_before", sa.Float, nullable=False, server_default="0"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_webhook_events_not_before", "webhook_events", ["not_before"])
    op.create_table(
        "webhook_totals",
        sa.Column("outcome", sa.Text, primary_key=True),
        sa.Column("count", BigInt, nullable=False),
        sqlite_with_rowid=False,
    )
