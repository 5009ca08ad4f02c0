"""The SQL of corrupt adapters: digests that failed in the engines of a base, until they are proven again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from service.access.audit import note
from service.registry import alias_records
from service.registry.audit_notes import system_actor
from service.registry.tables import adapters, corrupt, versions


def corrupt_digests(db: sa.Connection, engine: str) -> set[str]:
    """Digests that are marked corrupt on this engine."""
    return set(db.scalars(sa.select(corrupt.c.digest).where(corrupt.c.engine == engine)))


def mark_corrupt(
    db: sa.Connection, digest: str, engine: str, reason: str, *, serves: Callable[[dict[str, Any]], bool]
) -> None:
    """Mark a digest as corrupt on this engine; noted in each project that has a ready version of it there.

    Args:
        engine: The digest of its base's fingerprint.
        serves: Whether a version with this stored fingerprint serves there.
    """
    clear_corrupt(db, digest, engine)
    db.execute(corrupt.insert().values(digest=digest, engine=engine, reason=reason, created_at=alias_records.now()))
    affected = (
        sa.select(adapters.c.project, adapters.c.name, versions.c.number, versions.c.base)
        .join(versions, versions.c.adapter_id == adapters.c.id)
        .where(versions.c.digest == digest, versions.c.state == "ready")
    )
    for row in db.execute(affected).all():
        if serves(row.base):
            note(db, system_actor(row.project), "version.corrupt", f"{row.name}@{row.number}", {"reason": reason})


def clear_corrupt(db: sa.Connection, digest: str, engine: str) -> None:
    db.execute(corrupt.delete().where(corrupt.c.digest == digest, corrupt.c.engine == engine))
