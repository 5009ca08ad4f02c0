"""The usage table: one row per hour, project, key and adapter version."""

from __future__ import annotations

import sqlalchemy as sa

from service.database import metadata

usage = sa.Table(
    "usage",
    metadata,
    # Unix seconds of the hour's beginning
    sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
    # no foreign keys: what was used stays on the bill when the key, the adapter or the project is gone
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True),
    # the base's served name where no adapter was asked for; empty where the model's name stood for nothing
    sa.Column("adapter", sa.Text, primary_key=True),
    # 0 where there is none
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("cached_tokens", sa.Integer, nullable=False),
    # what counted against the key's limits: the engine's count, else the estimate
    sa.Column("charged_tokens", sa.Integer, nullable=False),
    sa.Index("ix_usage_key_id_hour", "key_id", "hour"),
)
