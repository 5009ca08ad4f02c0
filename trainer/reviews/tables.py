"""The tables of reviews. Times are Unix seconds."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from adapters.database.types import BigInt
from trainer.database import metadata

queues: Final = sa.Table(
    "queues",
    metadata,
    sa.Column("number", BigInt, primary_key=True, autoincrement=True),
    sa.Column("evaluation", sa.Text, nullable=False, unique=True, comment="the evaluation's id, or the job's"),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("judge", sa.Text, nullable=False, comment="empty: none"),
    sa.Column("digest", sa.Text, nullable=False, comment="of the judge's model and rubric; empty: no judge"),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("created_at", BigInt, nullable=False),
    sa.Column("adapters", sa.JSON(none_as_null=True), comment="adapters whose answers are compared; null: unknown"),
    sa.Column("reviewers", BigInt, nullable=False, server_default="1", comment="choices that each pair gets"),
    sa.Column("differing", BigInt, comment="questions with different answers; null: with a judge"),
    sa.Column("alike", BigInt, comment="questions with the same answer twice, not shown; null: with a judge"),
    sa.Column("ended_at", BigInt, comment="ended before every pair had its choices; null: not"),
    sa.Column("stores", sa.JSON(none_as_null=True), comment="whose passages the answers may show; null: unknown"),
    sa.Column("key_id", sa.Text, comment="of the evaluation's creator; null: unknown"),
    sa.Index("ix_queues_project_digest", "project", "digest"),
    sqlite_autoincrement=True,
)

pairs: Final = sa.Table(
    "pairs",
    metadata,
    sa.Column("number", BigInt, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("queue", BigInt, sa.ForeignKey("queues.number"), nullable=False),
    sa.Column("example", sa.Text, nullable=False),
    sa.Column("turns", sa.JSON, nullable=False),
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("first", sa.Text, nullable=False),
    sa.Column("second", sa.Text, nullable=False),
    sa.Column("first_is", sa.Text, nullable=False, comment="candidate or base"),
    sa.Column("vote", sa.Text, nullable=False, comment="the judge's: candidate, base or tie; empty: no judge"),
    sa.Column("unit", BigInt, comment="the question's independent unit; null: its own"),
    sa.UniqueConstraint("queue", "example"),
    sqlite_autoincrement=True,
)

choices: Final = sa.Table(
    "choices",
    metadata,
    sa.Column("pair", BigInt, sa.ForeignKey("pairs.number"), primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True, comment="key that made the choice"),
    sa.Column("choice", sa.Text, nullable=False, comment="first, second or tie"),
    sa.Column("first_is", sa.Text, nullable=False, comment="candidate or base, as this reviewer saw the pair"),
    sa.Column("chosen_at", BigInt, nullable=False),
    sqlite_with_rowid=False,
)
