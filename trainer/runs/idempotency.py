"""Idempotency-Keys: the same request again is the same run. What takes a connection runs inside ``Database.run``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from trainer.errors import Invalid, KeyReused
from trainer.runs.tables import idempotency

REMEMBERED_S: Final = 24 * 3600.0
"""How long an Idempotency-Key is known."""
REMEMBERED_MOST: Final = 1000
"""Idempotency-Keys that are known of one project and kind; the oldest are forgotten first."""


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


def made_before(db: sa.Connection, project: str, kind: str, retry: Retry | None, now: float) -> str | None:
    """The id of the run of that kind that was made with the key before; None where the key is not known.

    Raises:
        KeyReused: It came with another body.
    """
    if retry is None:
        return None
    table = idempotency.c
    found = db.execute(
        sa.select(table.run, table.body_sha256).where(
            table.project == project, table.kind == kind, table.key == retry.key, table.at > now - REMEMBERED_S
        )
    ).first()
    if found is None:
        return None
    if found.body_sha256 != retry.body_sha256:
        raise KeyReused("this Idempotency-Key has come with another body before", param="Idempotency-Key")
    return str(found.run)


def remember(db: sa.Connection, project: str, kind: str, retry: Retry, run_id: str, now: float) -> None:
    """Note what was made with a key, and forget what is too old or too much."""
    table = idempotency.c
    mine = sa.and_(table.project == project, table.kind == kind)
    db.execute(idempotency.delete().where(table.at <= now - REMEMBERED_S))
    newest = sa.select(table.key).where(mine).order_by(table.at.desc()).limit(REMEMBERED_MOST - 1)
    db.execute(idempotency.delete().where(mine, table.key.not_in(newest)))
    values = {"project": project, "kind": kind, "key": retry.key, "body_sha256": retry.body_sha256}
    db.execute(idempotency.insert().values(**values, run=run_id, at=now))
