"""Pins: adapters whose live version is kept loaded in the engine.

A pin is desired state: it is written down at once, and :class:`PinLoader` loads what is pinned and not loaded,
after each start of the engine and whenever something pinned has fallen out of its memory. It follows `live`: to where
the alias moves, and over all versions of a split.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa

from adapters.names import DEFAULT_ALIAS
from service.access.audit import Actor, note
from service.agents import Agent, ServedBase
from service.concurrency import repeat
from service.errors import Conflict, HatrackError, RateLimited, StoreUnavailable, Unavailable
from service.registry import pin_records
from service.registry.catalog import Catalog, Servable, VersionEntry
from service.registry.proof import Prober
from service.registry.records import AdapterWithVersions
from service.registry.split import versions_of
from service.registry.state import RegistryState

CHECK_S: Final = 5.0
"""Seconds between two looks at what the engine has loaded, while anything is pinned."""

RETRY_AFTER_S: Final = 60.0
"""A pinned adapter that the engine failed to load is left alone for this long, s."""

log = logging.getLogger(__name__)


class PinLoader:
    """Loads pinned versions that the engine has not loaded, until cancelled.

    Args:
        catalog: What is pinned, and to what it points.
        base: The engine's base.
        agent: The engine; of more pins than its slots less one (the setting was lowered since) the oldest count.
        prober: Loads an adapter in it.
        check_s: Seconds between two looks.
    """

    def __init__(
        self, catalog: Catalog, base: ServedBase, agent: Agent, prober: Prober, *, check_s: float = CHECK_S
    ) -> None:
        self._catalog = catalog
        self._base = base
        self._agent = agent
        self._prober = prober
        self._check_s = check_s
        self._woken = asyncio.Event()
        self._retry_at: dict[str, float] = {}  # digest → when it is tried again; pinned ones only

    def wake(self) -> None:
        """Check now, because an adapter was pinned or an alias moved."""
        self._woken.set()

    @property
    def digests_to_keep(self) -> list[str]:
        """Digests that this engine is to keep loaded, oldest pin first, without those that cannot serve."""
        pinned = [entry for entry in self._catalog.snapshot.adapters.values() if entry.pinned_at is not None]
        pinned.sort(key=lambda entry: (entry.pinned_at or 0, entry.created_at, entry.name))
        digests: dict[str, None] = {}
        for entry in pinned:
            live = entry.aliases.get(DEFAULT_ALIAS)
            for number in versions_of(live) if live is not None else ():
                version = entry.versions[number]
                if version.servable is Servable.OK and version.digest is not None and self._serves(version):
                    digests[version.digest] = None
        return list(digests)[: self._agent.settings.engine_slots - 1]

    def _serves(self, version: VersionEntry) -> bool:
        """Whether the version's requests come to this engine now."""
        return (version.base or self._catalog.base_name) == self._base.name and (
            self._base.agent_for(version.digest) is self._agent
        )

    async def work(self) -> None:
        """Check repeatedly, until cancelled."""
        await repeat(self._try_load_missing, self._check_s, self._woken)

    async def _try_load_missing(self) -> None:
        try:
            await self.load_missing()
        except HatrackError as error:
            log.debug("pinned adapters could not be checked: %s", error.message)

    async def load_missing(self) -> None:
        """Load each pinned version that is not loaded, once.

        Raises:
            HatrackError: The engine cannot say what it has, or cannot load anything now.
        """
        digests_to_keep = self.digests_to_keep
        self._retry_at = {digest: until for digest, until in self._retry_at.items() if digest in digests_to_keep}
        if not digests_to_keep:
            return
        loaded = set((await self._agent.client.report(loaded=True)).get("loaded", ()))
        now = asyncio.get_running_loop().time()
        for digest in digests_to_keep:
            if digest in loaded or self._retry_at.get(digest, now) > now:
                continue
            try:
                await self._prober.warm(digest)
            except StoreUnavailable as error:  # the others may be here
                self._retry_at[digest] = now + RETRY_AFTER_S
                log.warning("the pinned adapter %s could not be fetched: %s", digest[:12], error.message)
            except (Unavailable, RateLimited):
                raise  # says nothing about the adapter, and the next one would fail the same way
            except HatrackError as error:
                self._retry_at[digest] = now + RETRY_AFTER_S
                log.warning("the pinned adapter %s could not be loaded: %s", digest[:12], error.message)


class Pins:
    """Pins and unpins adapters."""

    def __init__(self, state: RegistryState, wake_loaders: Callable[[], None]) -> None:
        self._state = state
        self._wake_loaders = wake_loaders

    async def pin(self, project: str, name: str, *, actor: Actor) -> dict[str, Any]:
        """Pin the adapter: its live version is loaded in the background and kept loaded.

        Of a version without weights nothing is loaded; the pin counts once `live` moves to one that has some.

        Raises:
            NotFound: There is no such adapter.
            Conflict: It has no live version, or too much is pinned already.
        """
        async with self._state.lock(project, name):
            adapter = await self._state.adapter(project, name)
            live = adapter.aliases.get(DEFAULT_ALIAS)
            if live is None:
                raise Conflict(
                    f"the adapter `{name}` has no live version to pin; promote one first",
                    code="no_live_version",
                )
            adapter_id = adapter.row.id

            def work(db: sa.Connection) -> None:
                if not pin_records.is_pinned(db, adapter_id):
                    pin_records.require_room(db, adapter_id, live, self._state.bases)
                    pin_records.set_pin(db, adapter_id)
                    note(db, actor, "adapter.pin", name)

            await self._state.database.run(work)
            await self._state.refresh(project, name)
        self._wake_loaders()
        return _shown(adapter, pinned=True)

    async def unpin(self, project: str, name: str, *, actor: Actor) -> dict[str, Any]:
        """Unpin the adapter: the engine may unload it again.

        Raises:
            NotFound: There is no such adapter.
        """
        async with self._state.lock(project, name):
            adapter = await self._state.adapter(project, name)

            def work(db: sa.Connection) -> None:
                if pin_records.clear_pin(db, adapter.row.id):
                    note(db, actor, "adapter.unpin", name)

            await self._state.database.run(work)
            await self._state.refresh(project, name)
        return _shown(adapter, pinned=False)


def _shown(adapter: AdapterWithVersions, *, pinned: bool) -> dict[str, Any]:
    """A pin in the API's form, with the versions that are kept loaded: those with weights."""
    live = adapter.aliases.get(DEFAULT_ALIAS)
    loadable = {row.number for row in adapter.versions if row.digest is not None}
    return {
        "object": "adapter.pin",
        "adapter": adapter.row.name,
        "pinned": pinned,
        "versions": [number for number in versions_of(live) if number in loadable] if pinned and live else [],
    }
