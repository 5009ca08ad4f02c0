"""The registry's tables. Everything hangs on a project; a digest is text of 64 hex digits; times are Unix seconds."""

from __future__ import annotations

import sqlalchemy as sa

from adapters.database.types import BigInt, ComparableJson
from service.access.tables import projects
from service.database import metadata

STATES = ("proving", "ready", "rejected", "deleted")

adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("project", sa.Text, sa.ForeignKey(projects.c.id), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("next_version", BigInt, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    # a deleted name keeps its row, so that a number is never given twice: `brand-voice@3` in a log means one thing
    sa.Column("deleted_at", BigInt),
    # since when its live version is kept warm; null: it is not
    sa.Column("pinned_at", BigInt),
    sa.UniqueConstraint("project", "name"),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("adapter_id", BigInt, sa.ForeignKey("adapters.id"), nullable=False),
    sa.Column("number", BigInt, nullable=False),
    # empty for a version without weights; rank, alpha and bytes are 0 then (see `records.NO_DIGEST`)
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.JSON(none_as_null=True)),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("proof", sa.JSON(none_as_null=True)),
    sa.Column("rank", BigInt, nullable=False),
    sa.Column("alpha", sa.Float, nullable=False),
    sa.Column("target_modules", sa.JSON, nullable=False),
    sa.Column("bytes", BigInt, nullable=False),
    sa.Column("zero_effect", sa.Boolean, nullable=False),
    sa.Column("base", sa.JSON, nullable=False),
    sa.Column("config", sa.LargeBinary, nullable=False),
    sa.Column("readme", sa.LargeBinary),
    sa.Column("warnings", sa.JSON, nullable=False),
    # the alias to move when it is ready: null is the default rule, empty is none
    sa.Column("wanted_alias", sa.Text),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Column("ready_at", BigInt),
    # when it is deleted, unless an alias other than a checkpoint's is pointed to it before; null: never
    sa.Column("expires_at", BigInt),
    sa.UniqueConstraint("adapter_id", "number"),
)

alias_history = sa.Table(
    "alias_history",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("adapter_id", BigInt, sa.ForeignKey("adapters.id"), nullable=False),
    sa.Column("alias", sa.Text, nullable=False),
    # where it moved to: a version, or a split (weights by version); both null: the alias was deleted
    sa.Column("version", BigInt),
    sa.Column("split", sa.JSON(none_as_null=True)),
    sa.Column("action", sa.Text, nullable=False),
    # what a rollback from here goes back to; a chain, so that two rollbacks go back by two
    sa.Column("parent_id", BigInt, sa.ForeignKey("alias_history.id")),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Index("ix_alias_history_adapter_id_alias", "adapter_id", "alias"),
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("adapter_id", BigInt, sa.ForeignKey("adapters.id"), primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    # one of the two: a version, or a split (weights by version)
    sa.Column("version", BigInt),
    sa.Column("split", sa.JSON(none_as_null=True)),
    sa.Column("history_id", BigInt, sa.ForeignKey("alias_history.id"), nullable=False),
    sa.Column("updated_at", BigInt, nullable=False),
)

# weights that a project has brought into the store; a row goes when they are gone from there, not with their versions
project_weights = sa.Table(
    "project_weights",
    metadata,
    sa.Column("project", sa.Text, sa.ForeignKey(projects.c.id), primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

corrupt = sa.Table(
    "corrupt",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("engine", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
)

# what evaluations found of versions; rows are added and never changed, and go with their version
verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("version_id", BigInt, sa.ForeignKey("versions.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("examples", BigInt, nullable=False),
    sa.Column("evaluation_id", sa.Text),
    # file ids by what they are: `report`, `page`, `held_out`, `scores`
    sa.Column("files", sa.JSON, nullable=False),
    # the body that asks for the same evaluation again
    sa.Column("evaluation", sa.JSON(none_as_null=True)),
    # the fingerprint of the base as it was served meanwhile
    sa.Column("base", ComparableJson, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    # the version of the rule that the verdict was reached by
    sa.Column("rule", BigInt, nullable=False, server_default="1"),
    # of a revalidation: the id of the verdict that it was compared with, question by question, and whether that one
    # holds; null: it was compared with none, or it is not shown whether it holds
    sa.Column("compared_with", sa.Text),
    sa.Column("holds", sa.Boolean),
    sa.Index("ix_verdicts_version_id_kind_seq", "version_id", "kind", "seq"),
    sqlite_autoincrement=True,
)
