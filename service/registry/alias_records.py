"""The SQL of aliases: pointers to versions that move, and the history that a rollback walks back along."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from adapters.names import is_checkpoint_alias
from service.registry.split import AliasTarget, Split, stored_split, versions_of
from service.registry.tables import alias_history, aliases, versions


@dataclass(frozen=True, slots=True)
class AliasMoveRecord:
    """One entry of an alias's history; ``target`` is None where the alias was deleted."""

    id: int
    target: AliasTarget | None
    action: str
    parent_id: int | None
    created_at: int


def now() -> int:
    return int(time.time())


def target_of(row: sa.Row[*tuple[Any, ...]]) -> AliasTarget | None:
    """The target in a row of ``aliases`` or ``alias_history``."""
    number: int | None = row.version
    return number if row.split is None else stored_split(row.split)


def move(db: sa.Connection, adapter_id: int, alias: str, target: AliasTarget, action: str) -> bool:
    """Point the alias to a version or split; False if it points there already.

    Versions that an alias other than a checkpoint's points to no longer expire.
    """
    pointer = _pointer(db, adapter_id, alias)
    if pointer is not None and target_of(pointer) == target:
        return False
    earlier = history(db, adapter_id, alias)
    _write_move(db, adapter_id, alias, target, action, earlier[0].id if earlier else None)
    return True


def rollback_target(
    db: sa.Connection, adapter_id: int, alias: str, without: frozenset[int] = frozenset()
) -> AliasTarget | None:
    """The alias's last earlier target whose versions are all ready; None if there is none.

    Args:
        without: Versions that it must not go to, nor to a split over them.
    """
    entry = _rollback_entry(db, adapter_id, alias, without)
    return None if entry is None else entry.target


def move_back(
    db: sa.Connection, adapter_id: int, alias: str, expected: AliasTarget, without: frozenset[int] = frozenset()
) -> bool:
    """Roll back to what ``rollback_target`` returned; False if the alias was moved meanwhile."""
    entry = _rollback_entry(db, adapter_id, alias, without)
    if entry is None or entry.target != expected:
        return False
    _write_move(db, adapter_id, alias, expected, "rollback", entry.parent_id)
    return True


def _rollback_entry(db: sa.Connection, adapter_id: int, alias: str, without: frozenset[int]) -> AliasMoveRecord | None:
    pointer = _pointer(db, adapter_id, alias)
    if pointer is None:
        return None
    current = target_of(pointer)
    entries = {entry.id: entry for entry in history(db, adapter_id, alias)}
    ready = set(
        db.scalars(sa.select(versions.c.number).where(versions.c.adapter_id == adapter_id, versions.c.state == "ready"))
    )
    ready -= without
    entry: AliasMoveRecord | None = entries[pointer.history_id]
    while entry is not None and (
        entry.target is None or entry.target == current or not ready.issuperset(versions_of(entry.target))
    ):
        entry = entries.get(entry.parent_id) if entry.parent_id is not None else None
    return entry


def drop(db: sa.Connection, adapter_id: int, alias: str) -> bool:
    """Delete the alias but not its history. False if it does not exist."""
    pointer = _pointer(db, adapter_id, alias)
    if pointer is None:
        return False
    db.execute(aliases.delete().where(aliases.c.adapter_id == adapter_id, aliases.c.alias == alias))
    _write_history(db, adapter_id, alias, None, "delete", pointer.history_id)
    return True


def history(db: sa.Connection, adapter_id: int, alias: str) -> list[AliasMoveRecord]:
    """All moves of the alias, newest first."""
    rows = db.execute(
        sa.select(alias_history)
        .where(alias_history.c.adapter_id == adapter_id, alias_history.c.alias == alias)
        .order_by(alias_history.c.id.desc())
    )
    return [AliasMoveRecord(row.id, target_of(row), row.action, row.parent_id, row.created_at) for row in rows]


def _pointer(db: sa.Connection, adapter_id: int, alias: str) -> sa.Row[Any] | None:
    return db.execute(
        sa.select(aliases).where(aliases.c.adapter_id == adapter_id, aliases.c.alias == alias)
    ).one_or_none()


def _write_move(
    db: sa.Connection, adapter_id: int, alias: str, target: AliasTarget, action: str, parent_id: int | None
) -> None:
    move_id = _write_history(db, adapter_id, alias, target, action, parent_id)
    if not is_checkpoint_alias(alias):
        chosen = versions.c.adapter_id == adapter_id, versions.c.number.in_(versions_of(target))
        db.execute(versions.update().where(*chosen).values(expires_at=None))
    db.execute(aliases.delete().where(aliases.c.adapter_id == adapter_id, aliases.c.alias == alias))
    db.execute(
        aliases.insert().values(
            adapter_id=adapter_id, alias=alias, history_id=move_id, updated_at=now(), **_columns(target)
        )
    )


def _write_history(
    db: sa.Connection, adapter_id: int, alias: str, target: AliasTarget | None, action: str, parent_id: int | None
) -> int | None:
    move_id: int | None = db.scalar(
        alias_history.insert()
        .values(
            adapter_id=adapter_id,
            alias=alias,
            action=action,
            parent_id=parent_id,
            created_at=now(),
            **_columns(target),
        )
        .returning(alias_history.c.id)
    )
    return move_id


def _columns(target: AliasTarget | None) -> dict[str, Any]:
    if isinstance(target, Split):
        return {"version": None, "split": target.shown()}
    return {"version": target, "split": None}
