"""Aliases that split their requests over several versions, and adapters whose live version is kept warm."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("adapters", sa.Column("pinned_at", BigInt))
    op.add_column("alias_history", sa.Column("split", sa.JSON))
    # SQLite cannot drop NOT NULL from a column: the table is made again around its rows
    with op.batch_alter_table("aliases") as aliases:
        aliases.add_column(sa.Column("split", sa.JSON))
        aliases.alter_column("version", existing_type=BigInt, nullable=True)
