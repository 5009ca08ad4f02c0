"""API keys, and the audit of every mutation."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("hmac", sa.LargeBinary),
        sa.Column("hint", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("adapters", sa.JSON),
        sa.Column("stores", sa.JSON),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("background", sa.Boolean, nullable=False),
        sa.Column("parent_key_id", sa.Text),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("expires_at", BigInt),
        sa.Column("revoked_at", BigInt),
        sa.PrimaryKeyConstraint("seq", name="pk_keys"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_keys_project"),
        sa.UniqueConstraint("id", name="uq_keys_id"),
        sa.UniqueConstraint("hmac", name="uq_keys_hmac"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_keys_project", "keys", ["project"])
    op.create_index("ix_keys_parent_key_id", "keys", ["parent_key_id"])
    op.create_table(
        "audit",
        sa.Column("id", BigInt, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON),
        sa.Column("request_id", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_project_id", "audit", ["project", "id"])
