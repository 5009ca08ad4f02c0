"""The tables of access: projects, API keys, and the audit of every mutation. Times are Unix seconds."""

from __future__ import annotations

import sqlalchemy as sa

from adapters.database.types import BigInt
from service.database import metadata

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created_at", BigInt, nullable=False),
    # in the operator's currency, for a calendar month (UTC); null: none
    sa.Column("monthly_budget", sa.Float),
)

keys = sa.Table(
    "keys",
    metadata,
    # the order of creation, which the pages of a list follow
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    # HMAC-SHA256 of the key, all that is kept of it; null once it is revoked: a dead key cannot be brought back
    sa.Column("hmac", sa.LargeBinary, unique=True),
    sa.Column("hint", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("project", sa.Text, sa.ForeignKey(projects.c.id), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    # globs over names: null is all of the project, an empty list is none of it
    sa.Column("adapters", sa.JSON(none_as_null=True)),
    sa.Column("stores", sa.JSON(none_as_null=True)),
    # attributes and the values to which searches are restricted; null: none
    sa.Column("filters", sa.JSON(none_as_null=True)),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("background", sa.Boolean, nullable=False),
    # no foreign key: the admin key has the id `admin` and no row
    sa.Column("parent_key_id", sa.Text, index=True),
    # the admin key's HMAC then, where it is the parent: the key goes when that is replaced, wherever it was
    sa.Column("admin_hmac", sa.LargeBinary),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Column("expires_at", BigInt),
    # a revoked key keeps its row, so that usage and audit can still say whose it was
    sa.Column("revoked_at", BigInt),
    # of a run's key, for who may see the files that it uploads: the stores whose passages these may show, as
    # `adapters.authorization.StoreNames`; null: not known
    sa.Column("run_stores", sa.JSON(none_as_null=True)),
    sa.Index("ix_keys_project", "project"),
    sqlite_autoincrement=True,
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", BigInt, primary_key=True, autoincrement=True),
    sa.Column("created_at", BigInt, nullable=False),
    # no foreign keys: `admin` and `system` have no row, and an admin may act in a project before it exists
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("detail", sa.JSON(none_as_null=True)),
    sa.Column("request_id", sa.Text),
    sa.Index("ix_audit_project_id", "project", "id"),
    sqlite_autoincrement=True,
)
