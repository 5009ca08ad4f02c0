"""The SQL of pins: adapters whose live version is kept warm, and how many of the engine's slots that may take."""

from __future__ import annotations

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS
from service.errors import Conflict
from service.registry import alias_records
from service.registry.records import NO_DIGEST
from service.registry.split import AliasTarget, versions_of
from service.registry.tables import adapters, aliases, versions


def set_pin(db: sa.Connection, adapter_id: int) -> None:
    """Pin an adapter as of now."""
    db.execute(adapters.update().where(adapters.c.id == adapter_id).values(pinned_at=alias_records.now()))


def clear_pin(db: sa.Connection, adapter_id: int) -> bool:
    """Unpin an adapter; False if it was not pinned."""
    changed = db.execute(
        adapters.update().where(adapters.c.id == adapter_id, adapters.c.pinned_at.is_not(None)).values(pinned_at=None)
    )
    return changed.rowcount == 1


def is_pinned(db: sa.Connection, adapter_id: int) -> bool:
    """Whether the adapter is pinned."""
    return db.scalar(sa.select(adapters.c.pinned_at).where(adapters.c.id == adapter_id)) is not None


def needs(db: sa.Connection) -> dict[int, int]:
    """How many slots each pinned adapter of any project needs, by its id.

    One for each version with weights that its `live` may answer with; an adapter without any there keeps one reserved,
    so that a promotion is never what goes over the limit.
    """
    rows = db.execute(
        sa.select(adapters.c.id, aliases.c.version, aliases.c.split)
        .outerjoin(aliases, sa.and_(aliases.c.adapter_id == adapters.c.id, aliases.c.alias == DEFAULT_ALIAS))
        .where(adapters.c.pinned_at.is_not(None))
    )
    return {row.id: _slots(db, row.id, alias_records.target_of(row)) for row in rows.all()}


def require_room(db: sa.Connection, adapter_id: int, target: AliasTarget, slots: int) -> None:
    """Refuse that a pinned adapter's `live` moves to ``target`` where that would pin more than ``slots`` less one.

    Raises:
        Conflict: It would; the message has the numbers.
    """
    taken = needs(db)
    before, needed = taken.pop(adapter_id, 0), _slots(db, adapter_id, target)
    others = sum(taken.values())
    if needed > before and others + needed > slots - 1:
        raise Conflict(
            f"this would pin {others + needed} versions; at most {slots - 1} can be pinned, because the engine "
            f"has {slots} slots (HATRACK_ENGINE_SLOTS) and one must stay free for other adapters",
            code="too_many_pins",
        )


def _slots(db: sa.Connection, adapter_id: int, target: AliasTarget | None) -> int:
    if target is None:
        return 1
    loadable = sa.select(sa.func.count()).where(
        versions.c.adapter_id == adapter_id,
        versions.c.number.in_(versions_of(target)),
        versions.c.digest != NO_DIGEST,
    )
    return max(1, int(db.scalar(loadable) or 0))
