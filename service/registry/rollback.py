"""Rolls `live` back from versions whose revalidation failed, if the settings enable it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from adapters.names import DEFAULT_ALIAS
from service.concurrency import repeat
from service.errors import HatrackError
from service.registry import verdict_records
from service.registry.alias_service import AliasService
from service.registry.audit_notes import system_actor
from service.registry.catalog import Servable
from service.registry.state import RegistryState
from service.registry.verdict_records import FailedLiveVersion

LOOK_S: Final = 60.0
"""Seconds between two checks, which also retry rollbacks that failed or were interrupted by a crash."""
log = logging.getLogger(__name__)


class LiveRollback:
    """Rolls ``live`` back from failed versions to the last target in its history without any; never to nothing.

    If somebody moved ``live`` after the failure, it stays: they knew of it.

    Args:
        state: What the registry's parts share.
        aliases: Moves the alias.
    """

    def __init__(self, state: RegistryState, aliases: AliasService) -> None:
        self._state = state
        self._aliases = aliases
        self._wake = asyncio.Event()
        self._stuck: set[tuple[str, str, int]] = set()

    def wake(self) -> None:
        """Check at once, because a revalidation has failed."""
        self._wake.set()

    async def work(self) -> None:
        """Check now, on `wake` and every ``LOOK_S``, until cancelled."""
        await repeat(self.step, LOOK_S, self._wake)

    async def step(self) -> None:
        """Check once. Raises what the database raises."""
        rows = await self._state.database.run(verdict_records.live_failures)
        failures = [failure for failure in rows if failure.moved_at <= failure.failed_at]
        stuck = set()
        for failure in failures:
            if not await self._roll_back(failure):
                stuck.add((failure.project, failure.name, failure.number))
        self._stuck = stuck

    async def _roll_back(self, failure: FailedLiveVersion) -> bool:
        """Roll ``live`` back; False if that failed."""
        name = failure.name
        try:
            excluded = await self._excluded(failure.project, name)
            moved = await self._aliases.roll_back_from(
                failure.project, name, DEFAULT_ALIAS, excluded, actor=system_actor(failure.project)
            )
        except HatrackError as error:
            if (failure.project, name, failure.number) not in self._stuck:
                log.error(
                    "`live` could not be rolled back from a version whose revalidation failed",
                    extra={"version": f"{name}@{failure.number}", "reason": error.message},
                )
            return False
        if moved:
            log.warning(
                "`live` was rolled back from a version whose revalidation failed",
                extra={"version": f"{name}@{failure.number}"},
            )
        return True

    async def _excluded(self, project: str, name: str) -> frozenset[int]:
        """The adapter's versions that ``live`` must not point to: those that failed or cannot serve."""
        adapter = await self._state.adapter(project, name)
        verdict_status = await self._state.verdict_status([adapter])
        servable = await self._state.servability(adapter.versions)
        failed = {row.number for row in adapter.versions if row.id in verdict_status and verdict_status[row.id].failed}
        return frozenset(failed | {row.number for row in adapter.versions if servable[row.id] is not Servable.OK})
