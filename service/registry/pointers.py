"""Aliases: names that point to a version and move. A target is loaded in the engine before the pointer moves to it."""

from __future__ import annotations

from typing import Any

from adapters.names import parse_alias
from service.errors import Conflict, NotFound
from service.registry import moves
from service.registry.proof import Prober
from service.registry.records import Holding, VersionRow
from service.registry.state import RegistryState, parse_alias_path


class Pointers:
    """Moves aliases. A request sees the old target or the new one, never neither: the catalog is replaced whole."""

    def __init__(self, state: RegistryState, prober: Prober) -> None:
        self._state = state
        self._prober = prober

    async def promote(self, project: str, name: str, alias: str, number: int) -> dict[str, Any]:
        """Point the alias to a version, warmed before.

        Raises:
            NameInvalid: Not an alias.
            NotFound: There is no such adapter or version.
            Conflict: The version is not ready, or cannot serve now.
            HatrackError: The engine could not load it; the pointer stays.
        """
        alias = parse_alias(alias)
        async with self._state.lock(project, name):
            holding, row = await self._state.version(project, name, number)
            await self._state.demand_servable(name, row)
            await self.point(holding, alias, row, "promote")
            return await self._show(project, name, alias)

    async def point(self, holding: Holding, alias: str, row: VersionRow, action: str) -> None:
        """Warm the version and move the alias to it; the caller holds the adapter's lock."""
        if holding.aliases.get(alias) == row.number:
            return
        await self._prober.warm(row.digest)
        await self._state.database.run(lambda db: moves.move(db, row.adapter_id, alias, row.number, action))
        await self._state.refresh(holding.adapter.project, holding.adapter.name)

    async def rollback(self, project: str, name: str, alias: str) -> dict[str, Any]:
        """Point the alias to the version that it pointed to before; again, and it is the one before that.

        Raises:
            NotFound: There is no such adapter or alias.
            Conflict: There is nothing to go back to, or it cannot serve now.
            HatrackError: The engine could not load it; the pointer stays.
        """
        async with self._state.lock(project, name):
            holding, alias = await self._find(project, name, alias)
            adapter_id = holding.adapter.id
            number = await self._state.database.run(lambda db: moves.rollback_target(db, adapter_id, alias))
            row = None if number is None else holding.version(number)
            if number is None or row is None:
                raise Conflict(f"`{name}:{alias}` has no earlier version to go back to", code="no_earlier_version")
            await self._state.demand_servable(name, row)
            await self._prober.warm(row.digest)
            await self._state.database.run(lambda db: moves.move_back(db, adapter_id, alias, row.number))
            await self._state.refresh(project, name)
            return await self._show(project, name, alias)

    async def show(self, project: str, name: str, alias: str) -> dict[str, Any]:
        """The alias with its history, newest move first.

        Raises:
            NotFound: There is no such adapter or alias.
        """
        return await self._show(project, name, alias)

    async def drop(self, project: str, name: str, alias: str) -> None:
        """Delete the alias. Its history stays, should it be made again.

        Raises:
            NotFound: There is no such adapter or alias.
        """
        async with self._state.lock(project, name):
            holding, alias = await self._find(project, name, alias)
            await self._state.database.run(lambda db: moves.drop(db, holding.adapter.id, alias))
            await self._state.refresh(project, name)

    async def _find(self, project: str, name: str, alias: str) -> tuple[Holding, str]:
        holding = await self._state.holding(project, name)
        alias = parse_alias_path(alias, name)
        if alias not in holding.aliases:
            raise NotFound(f"the adapter `{name}` has no alias `{alias}`", code="alias_not_found")
        return holding, alias

    async def _show(self, project: str, name: str, alias: str) -> dict[str, Any]:
        holding, alias = await self._find(project, name, alias)
        past = await self._state.database.run(lambda db: moves.history(db, holding.adapter.id, alias))
        return {
            "object": "adapter.alias",
            "adapter": name,
            "alias": alias,
            "version": holding.aliases[alias],
            "history": [
                {"version": move.version, "action": move.action, "created_at": move.created_at} for move in past
            ],
        }
