"""Where the settings want it, ``live`` leaves a version whose revalidation failed."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from adapters.names import DEFAULT_ALIAS
from service.concurrency import repeat
from service.errors import HatrackError
from service.registry import verdict_records
from service.registry.catalog import Servable
from service.registry.pointers import Pointers
from service.registry.state import RegistryState
from service.registry.trail import gateway_in
from service.registry.verdict_records import LiveFailure

LOOK_S: Final = 60.0
"""Seconds between two looks: a rollback that the engine could not follow is tried again, and one that a crash cut."""
log = logging.getLogger(__name__)


class Fallback:
    """Rolls ``live`` back from failed versions: to the last aim of its history that has none, never to nothing.

    What somebody pointed ``live`` to after the failure stays: they knew.

    Args:
        state: What the registry's parts share.
        pointers: Moves the alias.
    """

    def __init__(self, state: RegistryState, pointers: Pointers) -> None:
        self._state = state
        self._pointers = pointers
        self._wake = asyncio.Event()
        self._stuck: set[tuple[str, str, int]] = set()

    def look(self) -> None:
        """A revalidation has failed: look at once."""
        self._wake.set()

    async def work(self) -> None:
        """Look now, whenever told to and every ``LOOK_S``, until cancelled."""
        await repeat(self.step, LOOK_S, self._wake)

    async def step(self) -> None:
        """Look once. Raises what the database raises."""
        found = await self._state.database.run(verdict_records.live_failures)
        failures = [failure for failure in found if failure.moved_at <= failure.failed_at]
        stuck = set()
        for failure in failures:
            if not await self._leave(failure):
                stuck.add((failure.project, failure.name, failure.number))
        self._stuck = stuck

    async def _leave(self, failure: LiveFailure) -> bool:
        """Roll ``live`` back; False where that could not be done."""
        name = failure.name
        try:
            bad = await self._bad(failure.project, name)
            moved = await self._pointers.leave(
                failure.project, name, DEFAULT_ALIAS, bad, actor=gateway_in(failure.project)
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

    async def _bad(self, project: str, name: str) -> frozenset[int]:
        """The adapter's versions that ``live`` must not go to: those that failed, and those that cannot serve."""
        holding = await self._state.holding(project, name)
        judged = await self._state.judged([holding])
        servable = await self._state.judge(holding.versions)
        failed = {row.number for row in holding.versions if row.id in judged and judged[row.id].failed}
        return frozenset(failed | {row.number for row in holding.versions if servable[row.id] is not Servable.OK})
