"""A run may be the child of another run, which waits for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # in one statement: SQLite adds a column with a reference, but cannot add a constraint to a table
    op.get_bind().exec_driver_sql("ALTER TABLE runs ADD COLUMN parent TEXT REFERENCES runs (id)")
    op.create_index("ix_runs_parent", "runs", [sa.column("parent").name])
