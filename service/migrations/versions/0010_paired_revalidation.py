"""Which earlier verdict a revalidation was compared with, and whether that verdict holds; so far none was."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("compared_with", sa.Text))
    op.add_column("verdicts", sa.Column("holds", sa.Boolean))
