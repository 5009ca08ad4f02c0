"""A key's own filters: the attributes to whose values its searches are restricted."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("filters", sa.JSON(none_as_null=True)))
