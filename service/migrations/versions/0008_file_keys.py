"""Which key uploaded a file: a key that globs narrow reaches its own files."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("key_id", sa.Text))
    # the audit knows it of every file so far
    op.execute(
        "UPDATE files SET key_id = (SELECT audit.key_id FROM audit "
        "WHERE audit.action = 'file.create' AND audit.target = files.id ORDER BY audit.id LIMIT 1)"
    )
