"""The SQL of pins: adapters whose live version is kept warm, and how many of the engine's slots that may take."""

from __future__ import annotations

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS
from service.errors import Conflict
from service.registry import moves
from service.registry.split import Aim, versions_of
from service.registry.tables import adapters, aliases


def set_pin(db: sa.Connection, adapter_id: int) -> None:
    """Pin an adapter as of now."""
    db.execute(adapters.update().where(adapters.c.id == adapter_id).values(pinned_at=moves.now()))


def clear_pin(db: sa.Connection, adapter_id: int) -> bool:
    """Take an adapter's pin away; False where it had none."""
    changed = db.execute(
        adapters.update().where(adapters.c.id == adapter_id, adapters.c.pinned_at.is_not(None)).values(pinned_at=None)
    )
    return changed.rowcount == 1


def is_pinned(db: sa.Connection, adapter_id: int) -> bool:
    """True where the adapter is pinned."""
    return db.scalar(sa.select(adapters.c.pinned_at).where(adapters.c.id == adapter_id)) is not None


def needs(db: sa.Connection) -> dict[int, int]:
    """How many slots each pinned adapter of any project needs, by its id.

    One for each version that its `live` may answer with; an adapter without `live` keeps one reserved, so that a
    promotion is never what goes over the limit.
    """
    found = db.execute(
        sa.select(adapters.c.id, aliases.c.version, aliases.c.split)
        .outerjoin(aliases, sa.and_(aliases.c.adapter_id == adapters.c.id, aliases.c.alias == DEFAULT_ALIAS))
        .where(adapters.c.pinned_at.is_not(None))
    )
    return {row.id: _slots(moves.aim_of(row)) for row in found}


def demand_room(db: sa.Connection, adapter_id: int, aim: Aim, slots: int) -> None:
    """Refuse that a pinned adapter's `live` moves to ``aim`` where that would pin more than ``slots`` less one.

    Raises:
        Conflict: It would; the message has the numbers.
    """
    taken = needs(db)
    before, wanted = taken.pop(adapter_id, 0), _slots(aim)
    others = sum(taken.values())
    if wanted > before and others + wanted > slots - 1:
        raise Conflict(
            f"this would pin {others + wanted} versions; the engine has {slots} slots, and at most {slots - 1} "
            "can be pinned, so that one is left for everything else",
            code="too_many_pins",
        )


def _slots(aim: Aim | None) -> int:
    return 1 if aim is None else len(versions_of(aim))
