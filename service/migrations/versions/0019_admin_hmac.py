"""Which admin key a batch or a key was made with, so that neither outlives it."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("admin_hmac", sa.LargeBinary))
    op.add_column("batches", sa.Column("admin_hmac", sa.LargeBinary))
