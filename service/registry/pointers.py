"""Aliases: names that point to a version, or are split over several, and move. What an alias moves to is loaded in the
engine before the pointer moves to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS, parse_alias
from service.access.audit import Actor, note
from service.errors import Conflict, NotFound
from service.registry import moves, pin_records
from service.registry.proof import Prober
from service.registry.records import Holding, VersionRow
from service.registry.split import Aim, Split, versions_of
from service.registry.state import RegistryState, parse_alias_path
from service.registry.trail import note_move


@dataclass(frozen=True, slots=True)
class Where:
    """Where an alias is expected to be: at this version, or (None) nowhere."""

    version: int | None


class Pointers:
    """Moves aliases. A request sees the old target or the new one, never neither: the catalog is replaced whole.

    Args:
        state: What the registry's parts share.
        prober: Loads a version before an alias moves to it.
        slots: The engine's slots: how far a pinned adapter's `live` may be split is bounded by them.
    """

    def __init__(self, state: RegistryState, prober: Prober, slots: int) -> None:
        self._state = state
        self._prober = prober
        self._slots = slots

    async def aim(
        self, project: str, name: str, alias: str, aim: Aim, *, expected: Where | None = None, actor: Actor
    ) -> dict[str, Any]:
        """Point the alias to a version (promote it), or split it over several; all are warmed before.

        Args:
            expected: Where the alias has to be; None: it does not matter.

        Raises:
            NameInvalid: Not an alias.
            NotFound: There is no such adapter or version.
            Conflict: A version is not ready or cannot serve now; `live` is pinned, and so many versions cannot be; or
                the alias is not where it was expected.
            HatrackError: The engine could not load one; the pointer stays.
        """
        alias = parse_alias(alias)
        because = "split" if isinstance(aim, Split) else "promote"
        async with self._state.lock(project, name):
            holding = await self._state.holding(project, name)
            if expected is not None and holding.aliases.get(alias) not in (expected.version, aim):
                raise Conflict(f"`{name}:{alias}` has moved since: nothing was changed", code="alias_moved")
            for number in versions_of(aim):
                _, row = await self._state.version(project, name, number)
                await self._state.demand_servable(name, row)
            await self.point(holding, alias, aim, because, actor=actor)
            return await self.show(project, name, alias)

    async def point(self, holding: Holding, alias: str, aim: Aim, because: str, *, actor: Actor) -> None:
        """Warm the versions and move the alias to them; the caller holds the adapter's lock."""
        if holding.aliases.get(alias) == aim:
            return
        adapter = holding.adapter

        def work(db: sa.Connection) -> None:
            self._demand_pin_room(db, adapter.id, alias, aim)
            if moves.move(db, adapter.id, alias, aim, because):
                note_move(db, actor, adapter.name, alias, aim, because)

        await self._warm(holding, aim)
        await self._state.database.run(work)
        await self._state.refresh(adapter.project, adapter.name)

    async def rollback(self, project: str, name: str, alias: str, *, actor: Actor) -> dict[str, Any]:
        """Point the alias to where it pointed before (a version or a split); again, and it is the one before that.

        Raises:
            NotFound: There is no such adapter or alias.
            Conflict: There is nothing to go back to, or it cannot serve now.
            HatrackError: The engine could not load it; the pointer stays.
        """
        async with self._state.lock(project, name):
            holding, alias = await self._find(project, name, alias)
            await self._back(holding, alias, frozenset(), "rollback", actor)
            return await self.show(project, name, alias)

    async def leave(self, project: str, name: str, alias: str, bad: frozenset[int], *, actor: Actor) -> bool:
        """Roll the alias back to where it last pointed to none of the ``bad`` versions; False where it does so now.

        Raises:
            NotFound: There is no such adapter or alias.
            Conflict: There is nothing to go back to: the pointer stays.
            HatrackError: The engine could not load it; the pointer stays.
        """
        async with self._state.lock(project, name):
            holding, alias = await self._find(project, name, alias)
            if bad.isdisjoint(versions_of(holding.aliases[alias])):
                return False
            await self._back(holding, alias, bad, "revalidation", actor)
            return True

    async def _back(self, holding: Holding, alias: str, without: frozenset[int], because: str, actor: Actor) -> None:
        """Warm what a rollback goes to and move the alias there; the caller holds the adapter's lock."""
        name, adapter_id = holding.adapter.name, holding.adapter.id
        aim = await self._state.database.run(lambda db: moves.rollback_target(db, adapter_id, alias, without))
        if aim is None:
            raise Conflict(f"`{name}:{alias}` has no earlier version to go back to", code="no_earlier_version")

        def work(db: sa.Connection) -> None:
            self._demand_pin_room(db, adapter_id, alias, aim)
            if moves.move_back(db, adapter_id, alias, aim, without):
                note_move(db, actor, name, alias, aim, because)

        for row in _rows(holding, aim):
            await self._state.demand_servable(name, row)
        await self._warm(holding, aim)
        await self._state.database.run(work)
        await self._state.refresh(holding.adapter.project, name)

    async def show(self, project: str, name: str, alias: str) -> dict[str, Any]:
        """The alias with its history, newest move first.

        Raises:
            NotFound: There is no such adapter or alias.
        """
        holding, alias = await self._find(project, name, alias)
        past = await self._state.database.run(lambda db: moves.history(db, holding.adapter.id, alias))
        return {
            "object": "adapter.alias",
            "adapter": name,
            "alias": alias,
            **_shown(holding.aliases[alias]),
            "history": [{**_shown(move.aim), "action": move.action, "created_at": move.created_at} for move in past],
        }

    async def drop(self, project: str, name: str, alias: str, *, actor: Actor) -> None:
        """Delete the alias. Its history stays, should it be made again.

        Raises:
            NotFound: There is no such adapter or alias.
        """
        async with self._state.lock(project, name):
            holding, alias = await self._find(project, name, alias)

            def work(db: sa.Connection) -> None:
                if moves.drop(db, holding.adapter.id, alias):
                    note(db, actor, "alias.delete", f"{name}:{alias}")

            await self._state.database.run(work)
            await self._state.refresh(project, name)

    def _demand_pin_room(self, db: sa.Connection, adapter_id: int, alias: str, aim: Aim) -> None:
        if alias == DEFAULT_ALIAS and pin_records.is_pinned(db, adapter_id):
            pin_records.demand_room(db, adapter_id, aim, self._slots)

    async def _warm(self, holding: Holding, aim: Aim) -> None:
        for row in _rows(holding, aim):
            await self._prober.warm(row.digest)

    async def _find(self, project: str, name: str, alias: str) -> tuple[Holding, str]:
        holding = await self._state.holding(project, name)
        alias = parse_alias_path(alias, name)
        if alias not in holding.aliases:
            raise NotFound(f"the adapter `{name}` has no alias `{alias}`", code="alias_not_found")
        return holding, alias


def _rows(holding: Holding, aim: Aim) -> list[VersionRow]:
    wanted = versions_of(aim)
    return [row for row in holding.versions if row.number in wanted]


def _shown(aim: Aim | None) -> dict[str, Any]:
    """Where an alias points in the API's form: a version or a split, the other one null; both where it was deleted."""
    if isinstance(aim, Split):
        return {"version": None, "split": aim.shown()}
    return {"version": aim, "split": None}
