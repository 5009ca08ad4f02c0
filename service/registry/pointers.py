"""Aliases: names that point to a version, or are split over several, and move. What an alias moves to is loaded in the
engine before the pointer moves to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from adapters.errors import ProofError
from adapters.names import DEFAULT_ALIAS, parse_alias
from adapters.perplexity import HOLD_BACK_RATIO, measured
from service.access.audit import Actor, note
from service.errors import Conflict, NotFound
from service.registry import moves, pin_records, records
from service.registry.proof import Prober
from service.registry.records import Holding, VersionRow
from service.registry.split import Aim, Split, versions_of
from service.registry.state import RegistryState, held_back, held_back_numbers, parse_alias_path
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
        self,
        project: str,
        name: str,
        alias: str,
        aim: Aim,
        *,
        expected: Where | None = None,
        force: bool = False,
        actor: Actor,
    ) -> dict[str, Any]:
        """Point the alias to a version (promote it), or split it over several; all are warmed before.

        Args:
            expected: Where the alias has to be; None: it does not matter.
            force: `live` may go to versions that are held back from it.

        Raises:
            NameInvalid: Not an alias.
            NotFound: There is no such adapter or version.
            Conflict: A version is not ready, cannot serve now or is held back; `live` is pinned, and so many versions
                cannot be; or the alias is not where it was expected.
            ProofError: A version that was proven before plain text was asked does not answer over it as it should.
            Unavailable: Such a version could not be measured in time.
            HatrackError: The engine could not load one; the pointer stays.
        """
        alias = parse_alias(alias)
        because = "split" if isinstance(aim, Split) else "promote"
        while True:
            async with self._state.lock(project, name):
                holding = await self._state.holding(project, name)
                if expected is not None and holding.aliases.get(alias) not in (expected.version, aim):
                    raise Conflict(f"`{name}:{alias}` has moved since: nothing was changed", code="alias_moved")
                rows = [(await self._state.version(project, name, number))[1] for number in versions_of(aim)]
                for row in rows:
                    await self._state.demand_servable(name, row)
                unmeasured = [] if force else self.unmeasured(holding, alias, rows)
                if not unmeasured:
                    if not force:
                        _demand_not_held_back(holding, alias, rows)
                    await self.point(holding, alias, aim, because, forced=force, actor=actor)
                    return await self.show(project, name, alias)
            await self.measure(unmeasured)

    def unmeasured(self, holding: Holding, alias: str, rows: Sequence[VersionRow]) -> list[VersionRow]:
        """Those versions that were proven before plain text was asked, and must be measured before the alias moves to
        them by itself. What it answers with already may stay."""
        if alias != DEFAULT_ALIAS:
            return []
        current = holding.aliases.get(alias)
        staying = () if current is None else versions_of(current)
        return [row for row in rows if row.number not in staying and measured(row.proof) is None]

    async def measure(self, rows: Sequence[VersionRow]) -> None:
        """Ask plain text of versions and write down what it says of them. Waits for proofs that go on: the caller
        holds no lock.

        Raises:
            ProofError: A version does not answer over it as it should.
            HatrackError: The engine cannot be asked, or not in time.
        """
        for row in rows:
            perplexity = (await self._prober.perplexity(row.digest)).model_dump(mode="json")
            await self._state.database.run(partial(records.set_perplexity, version_id=row.id, perplexity=perplexity))

    async def _measure_or_skip(self, rows: Sequence[VersionRow]) -> frozenset[int]:
        """``measure``; the versions that do not answer as they should."""
        unsound = set()
        for row in rows:
            try:
                await self.measure([row])
            except ProofError:
                unsound.add(row.number)
        return frozenset(unsound)

    async def follow_push(self, holding: Holding, alias: str, row: VersionRow, *, actor: Actor) -> None:
        """Point the alias to a version that was pushed once more, unless that is held back from it; the caller holds
        the adapter's lock, and has measured the version."""
        if not _held_back(holding, alias, [row]):
            await self.point(holding, alias, row.number, "push", actor=actor)

    async def point(
        self, holding: Holding, alias: str, aim: Aim, because: str, *, forced: bool = False, actor: Actor
    ) -> None:
        """Warm the versions and move the alias to them; the caller holds the adapter's lock."""
        if holding.aliases.get(alias) == aim:
            return
        adapter = holding.adapter

        def work(db: sa.Connection) -> None:
            self._demand_pin_room(db, adapter.id, alias, aim)
            if moves.move(db, adapter.id, alias, aim, because):
                note_move(db, actor, adapter.name, alias, aim, because, forced=forced)

        await self._warm(holding, aim)
        await self._state.database.run(work)
        await self._state.refresh(adapter.project, adapter.name)

    async def rollback(self, project: str, name: str, alias: str, *, actor: Actor) -> dict[str, Any]:
        """Point the alias to where it pointed before (a version or a split); again, and it is the one before that.

        Raises:
            NotFound: There is no such adapter or alias.
            Conflict: There is nothing to go back to, or it cannot serve now.
            Unavailable: A version that was proven before plain text was asked could not be measured in time.
            HatrackError: The engine could not load it; the pointer stays.
        """
        unsound: frozenset[int] = frozenset()
        while True:
            async with self._state.lock(project, name):
                holding, alias = await self._find(project, name, alias)
                unmeasured = await self._back(holding, alias, unsound, "rollback", actor)
                if not unmeasured:
                    return await self.show(project, name, alias)
            unsound |= await self._measure_or_skip(unmeasured)

    async def leave(self, project: str, name: str, alias: str, bad: frozenset[int], *, actor: Actor) -> bool:
        """Roll the alias back to where it last pointed to none of the ``bad`` versions; False where it does so now.

        Raises:
            NotFound: There is no such adapter or alias.
            Conflict: There is nothing to go back to: the pointer stays.
            HatrackError: The engine could not load it; the pointer stays.
        """
        unsound: frozenset[int] = frozenset()
        while True:
            async with self._state.lock(project, name):
                holding, alias = await self._find(project, name, alias)
                if bad.isdisjoint(versions_of(holding.aliases[alias])):
                    return False
                unmeasured = await self._back(holding, alias, bad | unsound, "revalidation", actor)
                if not unmeasured:
                    return True
            unsound |= await self._measure_or_skip(unmeasured)

    async def _back(
        self, holding: Holding, alias: str, without: frozenset[int], because: str, actor: Actor
    ) -> list[VersionRow]:
        """Warm what a rollback goes to and move the alias there; the caller holds the adapter's lock.

        `live` goes back to no version that is held back: whoever wants that promotes it by force.

        Returns:
            Versions that must be measured first: the alias has not moved then. None where it has.
        """
        name, adapter_id = holding.adapter.name, holding.adapter.id
        if alias == DEFAULT_ALIAS:
            without |= held_back_numbers(holding)
        aim = await self._state.database.run(lambda db: moves.rollback_target(db, adapter_id, alias, without))
        if aim is None:
            raise Conflict(f"`{name}:{alias}` has no earlier version to go back to", code="no_earlier_version")

        def work(db: sa.Connection) -> None:
            self._demand_pin_room(db, adapter_id, alias, aim)
            if moves.move_back(db, adapter_id, alias, aim, without):
                note_move(db, actor, name, alias, aim, because)

        rows = _rows(holding, aim)
        for row in rows:
            await self._state.demand_servable(name, row)
        unmeasured = self.unmeasured(holding, alias, rows)
        if unmeasured:
            return unmeasured
        await self._warm(holding, aim)
        await self._state.database.run(work)
        await self._state.refresh(holding.adapter.project, name)
        return []

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
    return [row for row in holding.versions if row.number in versions_of(aim)]


def _held_back(holding: Holding, alias: str, rows: Sequence[VersionRow]) -> list[tuple[VersionRow, dict[str, Any]]]:
    """Those of the versions that the alias must not move to by itself, and why; what it answers with may stay."""
    current = holding.aliases.get(alias)
    staying = () if current is None else versions_of(current)
    if alias != DEFAULT_ALIAS:
        return []
    reasons = [(row, held_back(row)) for row in rows if row.number not in staying]
    return [(row, reason) for row, reason in reasons if reason is not None]


def _demand_not_held_back(holding: Holding, alias: str, rows: Sequence[VersionRow]) -> None:
    for row, reason in _held_back(holding, alias, rows):
        raise Conflict(
            f"the version `{holding.adapter.name}@{row.number}` is held back from `{alias}`: "
            f"{reason['message']}; {HOLD_BACK_RATIO:g} times or more hold a version back. "
            '`"force": true` (`hatrack promote --force`) moves the alias to it all the same',
            code="version_held_back",
        )


def _shown(aim: Aim | None) -> dict[str, Any]:
    """Where an alias points in the API's form: a version or a split, the other one null; both where it was deleted."""
    if isinstance(aim, Split):
        return {"version": None, "split": aim.shown()}
    return {"version": aim, "split": None}
