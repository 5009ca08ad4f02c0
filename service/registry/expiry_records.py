"""The SQL of versions that expire, as the checkpoints of fine-tuning jobs do."""

from __future__ import annotations

import sqlalchemy as sa

from service.access.audit import note
from service.registry import alias_records, records
from service.registry.audit_notes import system_actor
from service.registry.tables import adapters, versions


def expired(db: sa.Connection) -> list[tuple[str, str, int]]:
    """(project, name, version id) of the versions whose time is over."""
    rows = db.execute(
        sa.select(adapters.c.project, adapters.c.name, versions.c.id)
        .join(versions, versions.c.adapter_id == adapters.c.id)
        .where(versions.c.state != "deleted", versions.c.expires_at <= alias_records.now())
        .order_by(versions.c.id)
    )
    return [(row.project, row.name, row.id) for row in rows]


def prolong(db: sa.Connection, version_id: int, expires_at: int | None) -> None:
    """Let a version that expires live until ``expires_at`` at least; None: for good."""
    chosen = [versions.c.id == version_id, versions.c.expires_at.is_not(None)]
    if expires_at is not None:
        chosen.append(versions.c.expires_at < expires_at)
    db.execute(versions.update().where(*chosen).values(expires_at=expires_at))


def delete_if_expired(db: sa.Connection, project: str, name: str, version_id: int) -> bool:
    """Delete a version whose time is over, with the aliases of its checkpoint; whether it was deleted. One that was
    kept for good since ``expired`` named it stays."""
    row = records.version_by_id(db, version_id)
    if row is None or row.state == "deleted" or row.expires_at is None or row.expires_at > alias_records.now():
        return False
    records.delete_version(db, row.adapter_id, row.number)
    detail = {"digest": row.digest, "expired_at": row.expires_at}
    note(db, system_actor(project), "version.delete", f"{name}@{row.number}", detail)
    return True
