"""Usage: what each key asked of each adapter's version, hour by hour."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("hour", sa.Integer, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("requests", sa.Integer, nullable=False),
        sa.Column("errors", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("cached_tokens", sa.Integer, nullable=False),
        sa.Column("charged_tokens", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("hour", "project", "key_id", "adapter", "version", name="pk_usage"),
    )
    op.create_index("ix_usage_key_id_hour", "usage", ["key_id", "hour"])
