"""How far the operator's experiment trackers have followed each job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tracked_runs",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("tracker", sa.Text, primary_key=True),
        sa.Column("external_id", sa.Text),
        sa.Column("sent", BigInt, nullable=False, server_default="0"),
        sa.Column("state", sa.Text, nullable=False, server_default="open"),
        sa.Column("tries", BigInt, nullable=False, server_default="0"),
        sa.Column("not_before", sa.Float, nullable=False, server_default="0"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tracked_runs_state_not_before", "tracked_runs", ["state", "not_before"])
