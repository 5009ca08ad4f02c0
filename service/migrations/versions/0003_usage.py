"""Usage: what each key asked of each adapter's version, hour by hour."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("hour", BigInt, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("version", BigInt, nullable=False),
        sa.Column("requests", BigInt, nullable=False),
        sa.Column("errors", BigInt, nullable=False),
        sa.Column("prompt_tokens", BigInt, nullable=False),
        sa.Column("completion_tokens", BigInt, nullable=False),
        sa.Column("cached_tokens", BigInt, nullable=False),
        sa.Column("charged_tokens", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("hour", "project", "key_id", "adapter", "version", name="pk_usage"),
    )
    op.create_index("ix_usage_key_id_hour", "usage", ["key_id", "hour"])
