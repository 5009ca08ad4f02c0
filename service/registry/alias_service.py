"""Sets, splits, rolls back and deletes aliases. A version is loaded in the engine before an alias moves to it."""

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
from service.registry import alias_records, pin_records, records
from service.registry.audit_notes import note_move
from service.registry.objects import held_back_reason
from service.registry.probers import Probers
from service.registry.records import AdapterWithVersions, VersionRow
from service.registry.split import AliasTarget, Split, versions_of
from service.registry.state import RegistryState, held_back_numbers, parse_alias_path


@dataclass(frozen=True, slots=True)
class ExpectedVersion:
    """The version that an alias is expected to point to; None: the alias is expected not to exist."""

    version: int | None


class AliasService:
    """Moves aliases atomically: every request sees either the old target or the new one.

    Args:
        state: What the registry's parts share.
        probers: Load a version before an alias moves to it.
    """

    def __init__(self, state: RegistryState, probers: Probers) -> None:
        self._state = state
        self._probers = probers

    async def set_target(
        self,
        project: str,
        name: str,
        alias: str,
        target: AliasTarget,
        *,
        expected: ExpectedVersion | None = None,
        force: bool = False,
        actor: Actor,
    ) -> dict[str, Any]:
        """Point the alias to a version (promote it), or split it over several; all are loaded first.

        Args:
            expected: Where the alias must point now; None: anywhere.
            force: Allow `live` to point to versions that are held back from it.

        Raises:
            NameInvalid: ``alias`` is not a valid alias name.
            NotFound: There is no such adapter or version.
            Conflict: A version is not ready, cannot serve now or is held back; `live` is pinned, and so many versions
                cannot be; or the alias is not where it was expected.
            ProofError: A version that was proven before plain text was asked does not answer over it as it should.
            Unavailable: Such a version could not be measured in time.
            HatrackError: The engine could not load one; the pointer stays.
        """
        alias = parse_alias(alias)
        because = "split" if isinstance(target, Split) else "promote"
        while True:
            async with self._state.lock(project, name):
                adapter = await self._state.adapter(project, name)
                if expected is not None and adapter.aliases.get(alias) not in (expected.version, target):
                    raise Conflict(
                        f"`{name}:{alias}` does not point to the expected version; nothing was changed",
                        code="alias_moved",
                    )
                rows = [(await self._state.version(project, name, number))[1] for number in versions_of(target)]
                for row in rows:
                    await self._state.require_servable(name, row)
                unmeasured = [] if force else self.unmeasured(adapter, alias, rows)
                if not unmeasured:
                    if not force:
                        _demand_not_held_back(adapter, alias, rows)
                    await self.point(adapter, alias, target, because, forced=force, actor=actor)
                    return await self.show(project, name, alias)
            await self.measure(unmeasured)

    def unmeasured(self, adapter: AdapterWithVersions, alias: str, rows: Sequence[VersionRow]) -> list[VersionRow]:
        """The versions that must be measured before the alias may move to them: they were proven before plain text was
        part of the proof. Versions that the alias already points to are left out, and those without weights."""
        if alias != DEFAULT_ALIAS:
            return []
        current = adapter.aliases.get(alias)
        current_versions = () if current is None else versions_of(current)
        return [
            row
            for row in rows
            if row.digest is not None and row.number not in current_versions and measured(row.proof) is None
        ]

    async def measure(self, rows: Sequence[VersionRow]) -> None:
        """Ask plain text of versions and write down what it says of them. Waits for proofs that go on: the caller
        holds no lock.

        Raises:
            ProofError: A version does not answer over it as it should.
            HatrackError: The engine cannot be asked, or not in time.
        """
        for row in rows:
            if row.digest is None:
                continue
            perplexity = (await self._probers.of(row.base, row.digest).perplexity(row.digest)).model_dump(mode="json")
            await self._state.database.run(partial(records.set_perplexity, version=row, perplexity=perplexity))

    async def _measure_or_skip(self, rows: Sequence[VersionRow]) -> frozenset[int]:
        """``measure``, but returns the versions that fail instead of raising."""
        unsound = set()
        for row in rows:
            try:
                await self.measure([row])
            except ProofError:
                unsound.add(row.number)
        return frozenset(unsound)

    async def follow_push(self, adapter: AdapterWithVersions, alias: str, row: VersionRow, *, actor: Actor) -> None:
        """Point the alias to a version that was pushed again, unless the version is held back from it.

        The caller holds the adapter's lock, and has measured the version.
        """
        if not _held_back(adapter, alias, [row]):
            await self.point(adapter, alias, row.number, "push", actor=actor)

    async def point(
        self,
        adapter: AdapterWithVersions,
        alias: str,
        target: AliasTarget,
        because: str,
        *,
        forced: bool = False,
        actor: Actor,
    ) -> None:
        """Warm the versions that have weights and move the alias to them; the caller holds the adapter's lock."""
        if adapter.aliases.get(alias) == target:
            return
        row = adapter.row

        def work(db: sa.Connection) -> None:
            pin_records.require_room_to_move(db, row.id, alias, target, self._state.bases)
            if alias_records.move(db, row.id, alias, target, because):
                note_move(db, actor, row.name, alias, target, because, forced=forced)

        await self._warm(adapter, target)
        await self._state.database.run(work)
        await self._state.refresh(row.project, row.name)

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
                adapter, alias = await self._find(project, name, alias)
                unmeasured = await self._back(adapter, alias, unsound, "rollback", actor)
                if not unmeasured:
                    return await self.show(project, name, alias)
            unsound |= await self._measure_or_skip(unmeasured)

    async def roll_back_from(self, project: str, name: str, alias: str, bad: frozenset[int], *, actor: Actor) -> bool:
        """Roll the alias back to where it last pointed to none of the ``bad`` versions; False where it does so now.

        Raises:
            NotFound: There is no such adapter or alias.
            Conflict: There is nothing to go back to: the pointer stays.
            HatrackError: The engine could not load it; the pointer stays.
        """
        unsound: frozenset[int] = frozenset()
        while True:
            async with self._state.lock(project, name):
                adapter, alias = await self._find(project, name, alias)
                if bad.isdisjoint(versions_of(adapter.aliases[alias])):
                    return False
                unmeasured = await self._back(adapter, alias, bad | unsound, "revalidation", actor)
                if not unmeasured:
                    return True
            unsound |= await self._measure_or_skip(unmeasured)

    async def _back(
        self, adapter: AdapterWithVersions, alias: str, without: frozenset[int], because: str, actor: Actor
    ) -> list[VersionRow]:
        """Warm what a rollback goes to and move the alias there; the caller holds the adapter's lock.

        `live` goes back to no version that is held back: whoever wants that promotes it by force.

        Returns:
            Versions that must be measured first: the alias has not moved then. None where it has.
        """
        name, adapter_id = adapter.row.name, adapter.row.id
        if alias == DEFAULT_ALIAS:
            without |= held_back_numbers(adapter)
        target = await self._state.database.run(
            lambda db: alias_records.rollback_target(db, adapter_id, alias, without)
        )
        if target is None:
            raise Conflict(f"`{name}:{alias}` has no earlier version to roll back to", code="no_earlier_version")

        def work(db: sa.Connection) -> None:
            pin_records.require_room_to_move(db, adapter_id, alias, target, self._state.bases)
            if alias_records.move_back(db, adapter_id, alias, target, without):
                note_move(db, actor, name, alias, target, because)

        rows = _rows(adapter, target)
        for row in rows:
            await self._state.require_servable(name, row)
        unmeasured = self.unmeasured(adapter, alias, rows)
        if unmeasured:
            return unmeasured
        await self._warm(adapter, target)
        await self._state.database.run(work)
        await self._state.refresh(adapter.row.project, name)
        return []

    async def show(self, project: str, name: str, alias: str) -> dict[str, Any]:
        """The alias with its history, newest move first.

        Raises:
            NotFound: There is no such adapter or alias.
        """
        adapter, alias = await self._find(project, name, alias)
        past = await self._state.database.run(lambda db: alias_records.history(db, adapter.row.id, alias))
        return {
            "object": "adapter.alias",
            "adapter": name,
            "alias": alias,
            **_shown(adapter.aliases[alias]),
            "history": [{**_shown(move.target), "action": move.action, "created_at": move.created_at} for move in past],
        }

    async def drop(self, project: str, name: str, alias: str, *, actor: Actor) -> None:
        """Delete the alias. Its history stays, should it be made again.

        Raises:
            NotFound: There is no such adapter or alias.
        """
        async with self._state.lock(project, name):
            adapter, alias = await self._find(project, name, alias)

            def work(db: sa.Connection) -> None:
                if alias_records.drop(db, adapter.row.id, alias):
                    note(db, actor, "alias.delete", f"{name}:{alias}")

            await self._state.database.run(work)
            await self._state.refresh(project, name)

    async def _warm(self, adapter: AdapterWithVersions, target: AliasTarget) -> None:
        for row in _rows(adapter, target):
            if row.digest is not None:
                await self._probers.of(row.base, row.digest).warm(row.digest)

    async def _find(self, project: str, name: str, alias: str) -> tuple[AdapterWithVersions, str]:
        adapter = await self._state.adapter(project, name)
        alias = parse_alias_path(alias, name)
        if alias not in adapter.aliases:
            raise NotFound(f"the adapter `{name}` has no alias `{alias}`", code="alias_not_found")
        return adapter, alias


def _rows(adapter: AdapterWithVersions, target: AliasTarget) -> list[VersionRow]:
    return [row for row in adapter.versions if row.number in versions_of(target)]


def _held_back(
    adapter: AdapterWithVersions, alias: str, rows: Sequence[VersionRow]
) -> list[tuple[VersionRow, dict[str, Any]]]:
    """Those of the versions that the alias must not move to by itself, and why; what it answers with may stay."""
    current = adapter.aliases.get(alias)
    current_versions = () if current is None else versions_of(current)
    if alias != DEFAULT_ALIAS:
        return []
    reasons = [(row, held_back_reason(row)) for row in rows if row.number not in current_versions]
    return [(row, reason) for row, reason in reasons if reason is not None]


def _demand_not_held_back(adapter: AdapterWithVersions, alias: str, rows: Sequence[VersionRow]) -> None:
    for row, reason in _held_back(adapter, alias, rows):
        raise Conflict(
            f"the version `{adapter.row.name}@{row.number}` is held back from `{alias}`: "
            f"{reason['message']}, and the limit is {HOLD_BACK_RATIO:g} times. "
            'To move the alias anyway, send `"force": true` (`hatrack promote --force`)',
            code="version_held_back",
        )


def _shown(target: AliasTarget | None) -> dict[str, Any]:
    """An alias's target in the API's form: `version` or `split`, the other is null; both are null if it was deleted."""
    if isinstance(target, Split):
        return {"version": None, "split": target.shown()}
    return {"version": target, "split": None}
