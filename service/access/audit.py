"""The audit log: who changed what and when, written in the transaction of the change itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from service.access.caller import DEFAULT_PROJECT, Caller
from service.access.tables import audit, keys

ADMIN_ID: Final = "admin"
"""The id of the admin key, which has no row in the table of keys."""
SYSTEM_ID: Final = "system"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change: the key, the project it acts in, and the request."""

    key_id: str
    project: str
    request_id: str | None = None

    @classmethod
    def of(cls, caller: Caller, request_id: str | None = None) -> Actor:
        """The caller of a request as an actor."""
        return cls(caller.key_id, caller.project, request_id)


SYSTEM: Final = Actor(SYSTEM_ID, DEFAULT_PROJECT)
"""The gateway itself; ``dataclasses.replace(SYSTEM, project=…)`` where it acts in another project."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change; ``key_name`` is None if there never was a key with that id."""

    id: int
    created_at: int
    key_id: str
    key_name: str | None
    project: str
    action: str
    target: str
    detail: dict[str, Any] | None
    request_id: str | None


def note(db: sa.Connection, actor: Actor, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
    """Record one change, in the transaction that makes it, so that both are committed or neither.

    Args:
        db: The connection of that transaction.
        actor: Who makes the change; the entry belongs to the actor's project.
        action: ``noun.verb``, such as ``alias.promote``.
        target: What was changed, under the name that users know: ``brand-voice:live``, a key's id.
        detail: Further JSON; never a key or any part of a prompt.
    """
    db.execute(
        audit.insert().values(
            created_at=int(time.time()),
            key_id=actor.key_id,
            project=actor.project,
            action=action,
            target=target,
            detail=detail,
            request_id=actor.request_id,
        )
    )


def page(
    db: sa.Connection, *, after: int | None, limit: int, project: str | None = None, action: str | None = None
) -> list[AuditRow]:
    """Up to ``limit`` changes, newest first, older than the entry ``after``; None: no filter."""
    name = sa.case((audit.c.key_id.in_((ADMIN_ID, SYSTEM_ID)), audit.c.key_id), else_=keys.c.name)
    query = (
        sa.select(*audit.c, name.label("key_name"))
        .outerjoin(keys, keys.c.id == audit.c.key_id)
        .order_by(audit.c.id.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(audit.c.id < after)
    if project is not None:
        query = query.where(audit.c.project == project)
    if action is not None:
        query = query.where(audit.c.action == action)
    return [AuditRow(**row._mapping) for row in db.execute(query)]
