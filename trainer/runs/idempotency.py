"""Idempotency-Keys: repeating a request gives the same run. Functions with a ``db`` run inside ``Database.run``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from trainer.errors import IdempotencyKeyReused, InvalidField
from trainer.runs.tables import idempotency

RETENTION_S: Final = 24 * 3600.0
"""How long an Idempotency-Key is remembered."""
MAX_KEYS: Final = 1000
"""Idempotency-Keys remembered per project and kind; the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class Retry:
    """An Idempotency-Key, and the SHA-256 of the body that it was sent with."""

    key: str
    body_sha256: str


def retry_of(key: str | None, content: object) -> Retry | None:
    """The Retry for an Idempotency-Key header and a JSON body; None without the header. Raises InvalidField."""
    if key is None:
        return None
    if not 0 < len(key) <= 255:
        raise InvalidField(f"Idempotency-Key must have 1 to 255 characters; got {len(key)}", param="Idempotency-Key")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Retry(key, hashlib.sha256(canonical.encode()).hexdigest())


def find_previous_run(db: sa.Connection, project: str, kind: str, retry: Retry | None, now: float) -> str | None:
    """The id of the run of this kind that was created with the key before; None if the key is not known.

    Raises:
        IdempotencyKeyReused: The key was used with a different body.
    """
    if retry is None:
        return None
    table = idempotency.c
    row = db.execute(
        sa.select(table.run, table.body_sha256).where(
            table.project == project, table.kind == kind, table.key == retry.key, table.at > now - RETENTION_S
        )
    ).first()
    if row is None:
        return None
    if row.body_sha256 != retry.body_sha256:
        raise IdempotencyKeyReused(
            "this Idempotency-Key was already used with a different body", param="Idempotency-Key"
        )
    return str(row.run)


def remember(db: sa.Connection, project: str, kind: str, retry: Retry, run_id: str, now: float) -> None:
    """Record the run created with a key, and forget keys that are too old or too many."""
    table = idempotency.c
    mine = sa.and_(table.project == project, table.kind == kind)
    db.execute(idempotency.delete().where(table.at <= now - RETENTION_S))
    newest = sa.select(table.key).where(mine).order_by(table.at.desc()).limit(MAX_KEYS - 1)
    db.execute(idempotency.delete().where(mine, table.key.not_in(newest)))
    values = {"project": project, "kind": kind, "key": retry.key, "body_sha256": retry.body_sha256}
    db.execute(idempotency.insert().values(**values, run=run_id, at=now))
