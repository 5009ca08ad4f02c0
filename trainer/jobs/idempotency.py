"""Idempotency-Keys: the same request again is the same job. The functions of tables run inside ``Database.run``.

A table of keys has the columns project, key, body_sha256, job (what was made) and at (Unix seconds).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from trainer.errors import Invalid, KeyReused

REMEMBERED_S: Final = 24 * 3600.0
"""How long an Idempotency-Key is known."""
REMEMBERED_MOST: Final = 1000
"""Idempotency-Keys that are known of one project; the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class Retry:
    """An Idempotency-Key, and the SHA-256 of the body that it came with."""

    key: str
    body_sha256: str


def retry_of(key: str | None, content: object) -> Retry | None:
    """What a request's header and its body (JSON) come to. Raises Invalid."""
    if key is None:
        return None
    if not 0 < len(key) <= 255:
        raise Invalid("an Idempotency-Key has 1 to 255 characters", param="Idempotency-Key")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Retry(key, hashlib.sha256(canonical.encode()).hexdigest())


def made_before(db: sa.Connection, table: sa.Table, project: str, retry: Retry | None, now: float) -> str | None:
    """The id of what was made with the key before; None where it is not known.

    Raises:
        KeyReused: It came with another body.
    """
    if retry is None:
        return None
    found = db.execute(
        sa.select(table.c.job, table.c.body_sha256).where(
            table.c.project == project, table.c.key == retry.key, table.c.at > now - REMEMBERED_S
        )
    ).first()
    if found is None:
        return None
    if found.body_sha256 != retry.body_sha256:
        raise KeyReused("this Idempotency-Key has come with another body before", param="Idempotency-Key")
    return str(found.job)


def remember(db: sa.Connection, table: sa.Table, project: str, retry: Retry, job_id: str, now: float) -> None:
    """Note what was made with a key, and forget what is too old or too much."""
    mine = table.c.project == project
    db.execute(table.delete().where(table.c.at <= now - REMEMBERED_S))
    newest = sa.select(table.c.key).where(mine).order_by(table.c.at.desc()).limit(REMEMBERED_MOST - 1)
    db.execute(table.delete().where(mine, table.c.key.not_in(newest)))
    db.execute(table.insert().values(project=project, key=retry.key, body_sha256=retry.body_sha256, job=job_id, at=now))
