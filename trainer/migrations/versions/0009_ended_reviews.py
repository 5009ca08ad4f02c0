"""Reviews that are ended before every pair has its choices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("queues", sa.Column("ended_at", BigInt))
