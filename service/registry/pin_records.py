"""The SQL of pins: adapters whose live version is kept warm, and how many slots of its base's engines that may take."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS
from service.agents import Bases
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


def needs(db: sa.Connection, bases: Bases) -> dict[int, Counter[str]]:
    """How many slots of each base's engines each pinned adapter of any project needs, by its id and the base's name.

    One for each version with weights that its `live` may answer with; an adapter without any there keeps one reserved,
    so that a promotion is never what goes over the limit. A version whose base is not served counts as if it had no
    weights, on the default base.
    """
    rows = db.execute(
        sa.select(adapters.c.id, aliases.c.version, aliases.c.split)
        .outerjoin(aliases, sa.and_(aliases.c.adapter_id == adapters.c.id, aliases.c.alias == DEFAULT_ALIAS))
        .where(adapters.c.pinned_at.is_not(None))
    )
    return {row.id: _slots(db, row.id, alias_records.target_of(row), bases) for row in rows.all()}


def require_room(db: sa.Connection, adapter_id: int, target: AliasTarget, bases: Bases) -> None:
    """Refuse that a pinned adapter's `live` moves to ``target`` where that would pin too many versions on a base.

    On each base one slot less than the smallest of its engines has: each of them may have to serve all.

    Raises:
        Conflict: It would; the message has the numbers.
    """
    taken = needs(db, bases)
    before = taken.pop(adapter_id, Counter())
    for name, needed in _slots(db, adapter_id, target, bases).items():
        others, slots = sum(each[name] for each in taken.values()), bases.named(name).slots
        if needed > before[name] and others + needed > slots - 1:
            where = f" on the base `{name}`" if len(bases.names) > 1 else ""
            raise Conflict(
                f"this would pin {others + needed} versions{where}; at most {slots - 1} can be pinned, because the "
                f"engine has {slots} slots (HATRACK_ENGINE_SLOTS) and one must stay free for other adapters",
                code="too_many_pins",
            )


def require_room_to_move(db: sa.Connection, adapter_id: int, alias: str, target: AliasTarget, bases: Bases) -> None:
    """``require_room`` where the alias is `live` and the adapter is pinned: before any alias moves."""
    if alias == DEFAULT_ALIAS and is_pinned(db, adapter_id):
        require_room(db, adapter_id, target, bases)


def _slots(db: sa.Connection, adapter_id: int, target: AliasTarget | None, bases: Bases) -> Counter[str]:
    if target is None:
        return Counter({bases.default.name: 1})
    rows = db.execute(
        sa.select(versions.c.digest, versions.c.base).where(
            versions.c.adapter_id == adapter_id, versions.c.number.in_(versions_of(target))
        )
    )
    loaded, reserved = Counter[str](), Counter[str]()
    for row in rows.all():
        base = bases.serving(row.base)
        (loaded if base is not None and row.digest != NO_DIGEST else reserved)[(base or bases.default).name] += 1
    return loaded | Counter(dict.fromkeys(reserved, 1))
