"""The vector stores whose passages runs and reviews show, and who has created a review's evaluation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("stores", sa.JSON(none_as_null=True)))
    op.add_column("queues", sa.Column("stores", sa.JSON(none_as_null=True)))
    op.add_column("queues", sa.Column("key_id", sa.Text))
