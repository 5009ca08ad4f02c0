"""Which version of the rule a verdict was reached by; those so far are of the first."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("rule", BigInt, nullable=False, server_default="1"))
