"""Pins: an adapter whose live version is kept warm, whatever else comes and goes in the engine.

A pin is desired state: it is written down at once, and :class:`KeepWarm` sees to it that the engine has what is pinned,
after each start of the engine and whenever something pinned has fallen out of its memory. It follows `live`: to where
the alias moves, and over all versions of a split.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS
from service.access.audit import Actor, note
from service.concurrency import repeat
from service.engine.client import EngineClient
from service.errors import Conflict, HatrackError, RateLimited, Unavailable
from service.registry import pin_records
from service.registry.catalog import Catalog, Servable
from service.registry.proof import Prober
from service.registry.records import Holding
from service.registry.split import versions_of
from service.registry.state import RegistryState

CHECK_S: Final = 5.0
"""Seconds between two looks at what the engine has loaded, while anything is pinned."""

REST_S: Final = 60.0
"""A pinned adapter that the engine failed to load is left alone for this long, s."""

log = logging.getLogger(__name__)


class KeepWarm:
    """Loads what is pinned and not loaded, until it is cancelled.

    Args:
        catalog: What is pinned, and to what it points.
        residency: What is loaded.
        prober: Loads an adapter.
        slots: The engine's slots; of more pins than those less one (the setting was lowered since) the oldest count.
        check_s: Seconds between two looks.
    """

    def __init__(
        self, catalog: Catalog, residency: EngineClient, prober: Prober, slots: int, *, check_s: float = CHECK_S
    ) -> None:
        self._catalog = catalog
        self._residency = residency
        self._prober = prober
        self._slots = slots
        self._check_s = check_s
        self._woken = asyncio.Event()
        self._resting: dict[str, float] = {}  # digest → when it is tried again; pinned ones only

    def wake(self) -> None:
        """Something was pinned or moved: look now."""
        self._woken.set()

    @property
    def wanted(self) -> list[str]:
        """Digests to keep warm, the oldest pin's first; what cannot serve is left out."""
        pinned = [entry for entry in self._catalog.snapshot.adapters.values() if entry.pinned_at is not None]
        pinned.sort(key=lambda entry: (entry.pinned_at or 0, entry.created_at, entry.name))
        digests: dict[str, None] = {}
        for entry in pinned:
            live = entry.aliases.get(DEFAULT_ALIAS)
            for number in versions_of(live) if live is not None else ():
                version = entry.versions[number]
                if version.servable is Servable.OK:
                    digests[version.digest] = None
        return list(digests)[: self._slots - 1]

    async def work(self) -> None:
        """Look again and again, until cancelled."""
        await repeat(self._try_to_look, self._check_s, self._woken)

    async def _try_to_look(self) -> None:
        try:
            await self.look()
        except HatrackError as error:
            log.debug("pinned adapters could not be looked after: %s", error.message)

    async def look(self) -> None:
        """Load what is pinned and not loaded, once.

        Raises:
            HatrackError: The engine cannot say what it has, or cannot load anything now.
        """
        wanted = self.wanted
        self._resting = {digest: until for digest, until in self._resting.items() if digest in wanted}
        if not wanted:
            return
        loaded = set((await self._residency.report(loaded=True)).get("loaded", ()))
        now = asyncio.get_running_loop().time()
        for digest in wanted:
            if digest in loaded or self._resting.get(digest, now) > now:
                continue
            try:
                await self._prober.warm(digest)
            except (Unavailable, RateLimited):
                raise  # says nothing about the adapter, and the next one would hear the same
            except HatrackError as error:
                self._resting[digest] = now + REST_S
                log.warning("the pinned adapter %s could not be loaded: %s", digest[:12], error.message)


class Pins:
    """Pins and unpins adapters."""

    def __init__(self, state: RegistryState, keeper: KeepWarm, slots: int) -> None:
        self._state = state
        self._keeper = keeper
        self._slots = slots

    async def pin(self, project: str, name: str, *, actor: Actor) -> dict[str, Any]:
        """Keep the adapter's live version warm from now on; it is loaded in the background.

        Raises:
            NotFound: There is no such adapter.
            Conflict: It has no live version, or too much is pinned already.
        """
        async with self._state.lock(project, name):
            holding = await self._state.holding(project, name)
            live = holding.aliases.get(DEFAULT_ALIAS)
            if live is None:
                raise Conflict(
                    f"the adapter `{name}` has no live version that could be kept warm; promote one",
                    code="no_live_version",
                )
            adapter_id = holding.adapter.id

            def work(db: sa.Connection) -> None:
                if not pin_records.is_pinned(db, adapter_id):
                    pin_records.demand_room(db, adapter_id, live, self._slots)
                    pin_records.set_pin(db, adapter_id)
                    note(db, actor, "adapter.pin", name)

            await self._state.database.run(work)
            await self._state.refresh(project, name)
        self._keeper.wake()
        return _shown(holding, pinned=True)

    async def unpin(self, project: str, name: str, *, actor: Actor) -> dict[str, Any]:
        """Let the adapter come and go like any other.

        Raises:
            NotFound: There is no such adapter.
        """
        async with self._state.lock(project, name):
            holding = await self._state.holding(project, name)

            def work(db: sa.Connection) -> None:
                if pin_records.clear_pin(db, holding.adapter.id):
                    note(db, actor, "adapter.unpin", name)

            await self._state.database.run(work)
            await self._state.refresh(project, name)
        return _shown(holding, pinned=False)


def _shown(holding: Holding, *, pinned: bool) -> dict[str, Any]:
    """A pin in the API's form, with the versions that are kept warm."""
    live = holding.aliases.get(DEFAULT_ALIAS)
    return {
        "object": "adapter.pin",
        "adapter": holding.adapter.name,
        "pinned": pinned,
        "versions": list(versions_of(live)) if pinned and live is not None else [],
    }
