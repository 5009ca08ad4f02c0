"""The vector stores whose passages a run's results may show, on the run's key, which uploads them."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("run_stores", sa.JSON(none_as_null=True)))
