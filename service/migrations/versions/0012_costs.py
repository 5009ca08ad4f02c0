"""Engine time of requests, hours of the engine, and a budget of each project. Earlier requests were not measured."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage", sa.Column("engine_s", sa.Float, nullable=False, server_default="0"))
    op.create_table(
        "engine_time",
        sa.Column("hour", BigInt, primary_key=True, autoincrement=False),
        sa.Column("up_s", sa.Float, nullable=False),
        sa.Column("busy_s", sa.Float, nullable=False),
        sa.Column("own_s", sa.Float, nullable=False),
    )
    op.add_column("projects", sa.Column("monthly_budget", sa.Float))
