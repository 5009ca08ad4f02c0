"""Versions that expire: the checkpoints of fine-tuning jobs."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("versions", sa.Column("expires_at", BigInt))
