"""Device time by hour. What runs took before this release stands in the hour of their end, undivided."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_time",
        sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("hour", BigInt, primary_key=True, autoincrement=False),
        sa.Column("training_s", sa.Float, nullable=False),
        sa.Column("judging_s", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_device_time_hour", "device_time", ["hour"])
    op.execute(
        "INSERT INTO device_time (run, hour, training_s, judging_s) "
        "SELECT id, hour - hour % 3600, device_s, 0 FROM "
        "(SELECT id, device_s, CAST(COALESCE(finished_at, created_at) AS INTEGER) AS hour "
        "FROM runs WHERE device_s > 0) AS ended"
    )
