"""Sketches of held-out examples, by which near-duplicates of those of earlier looks are recognised."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "look_examples",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("example", sa.LargeBinary, primary_key=True),
        sa.Column("sketch", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
