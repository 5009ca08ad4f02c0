"""Uploaded files, and who holds the bytes of one that is off the list."""

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("bytes", BigInt, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("expires_at", BigInt),
        sa.Column("deleted_at", BigInt),
        sa.Column("gone_at", BigInt),
        sa.PrimaryKeyConstraint("seq", name="pk_files"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_files_project"),
        sa.UniqueConstraint("id", name="uq_files_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_files_project_seq", "files", ["project", "seq"])
    op.create_table(
        "file_holds",
        sa.Column("file_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("file_id", "kind", "holder", name="pk_file_holds"),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name="fk_file_holds_file_id"),
    )
    op.create_index("ix_file_holds_kind_holder", "file_holds", ["kind", "holder"])
