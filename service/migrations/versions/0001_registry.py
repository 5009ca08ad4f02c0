"""Projects, adapters, versions, aliases with their history, and what proved corrupt."""

import time

import sqlalchemy as sa
from alembic import op

from adapters.database.types import BigInt

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
    )
    op.bulk_insert(projects, [{"id": "default", "created_at": int(time.time())}])
    op.create_table(
        "adapters",
        sa.Column("id", BigInt, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("next_version", BigInt, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("deleted_at", BigInt),
        sa.PrimaryKeyConstraint("id", name="pk_adapters"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_adapters_project"),
        sa.UniqueConstraint("project", "name", name="uq_adapters_project_name"),
    )
    _versions()
    _aliases()
    op.create_table(
        "corrupt",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("digest", "engine", name="pk_corrupt"),
    )


def _versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", BigInt, nullable=False),
        sa.Column("adapter_id", BigInt, nullable=False),
        sa.Column("number", BigInt, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.JSON),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("proof", sa.JSON),
        sa.Column("rank", BigInt, nullable=False),
        sa.Column("alpha", sa.Float, nullable=False),
        sa.Column("target_modules", sa.JSON, nullable=False),
        sa.Column("bytes", BigInt, nullable=False),
        sa.Column("zero_effect", sa.Boolean, nullable=False),
        sa.Column("base", sa.JSON, nullable=False),
        sa.Column("config", sa.LargeBinary, nullable=False),
        sa.Column("readme", sa.LargeBinary),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("wanted_alias", sa.Text),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("ready_at", BigInt),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_versions_adapter_id"),
        sa.UniqueConstraint("adapter_id", "number", name="uq_versions_adapter_id_number"),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])


def _aliases() -> None:
    op.create_table(
        "alias_history",
        sa.Column("id", BigInt, nullable=False),
        sa.Column("adapter_id", BigInt, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("version", BigInt),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("parent_id", BigInt),
        sa.Column("created_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alias_history"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_alias_history_adapter_id"),
        sa.ForeignKeyConstraint(["parent_id"], ["alias_history.id"], name="fk_alias_history_parent_id"),
    )
    op.create_index("ix_alias_history_adapter_id_alias", "alias_history", ["adapter_id", "alias"])
    op.create_table(
        "aliases",
        sa.Column("adapter_id", BigInt, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("version", BigInt, nullable=False),
        sa.Column("history_id", BigInt, nullable=False),
        sa.Column("updated_at", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_aliases_adapter_id"),
        sa.ForeignKeyConstraint(["history_id"], ["alias_history.id"], name="fk_aliases_history_id"),
    )
