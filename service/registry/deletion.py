"""Deletes adapters and versions: on request, and versions whose time is over."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

import sqlalchemy as sa

from service.access.audit import Actor, note
from service.registry import expiry_records, records
from service.registry.state import RegistryState, require_unused

EXPIRY_S: Final = 600.0
"""Seconds between two looks for versions that have expired."""

log = logging.getLogger(__name__)


class Deletion:
    """Deletes adapters and versions. A version's files are removed once no engine may need them."""

    def __init__(self, state: RegistryState) -> None:
        self._state = state

    async def delete_version(self, project: str, name: str, number: str, *, force: bool, actor: Actor) -> None:
        """Delete a version.

        Raises:
            NotFound: There is no such version.
            Unprocessable: An alias points to it, alone or in a split, and ``force`` is not given. With it, the whole
                alias goes: no other version takes over requests that nobody gave it.
        """
        async with self._state.lock(project, name):
            adapter, row = await self._state.version(project, name, number)
            aliases_of = adapter.aliases_of(row.number)
            require_unused(aliases_of, force)

            def work(db: sa.Connection) -> None:
                records.delete_version(db, row.adapter_id, row.number)
                note(db, actor, "version.delete", f"{name}@{row.number}", {"digest": row.digest, "aliases": aliases_of})

            await self._state.database.run(work)
            await self._state.refresh(project, name)

    async def delete_adapter(self, project: str, name: str, *, force: bool, actor: Actor) -> None:
        """Delete an adapter with all its versions.

        Raises:
            NotFound: There is no such adapter.
            Unprocessable: It has an alias, and ``force`` is not given.
        """
        async with self._state.lock(project, name):
            adapter = await self._state.adapter(project, name)
            require_unused(list(adapter.aliases), force)

            def work(db: sa.Connection) -> None:
                records.delete_adapter(db, adapter.row.id)
                note(db, actor, "adapter.delete", name, {"versions": [row.number for row in adapter.versions]})

            await self._state.database.run(work)
            await self._state.refresh(project, name)

    async def delete_expired(self) -> int:
        """Delete the versions whose time is over; returns how many there were."""
        deleted = 0
        for project, name, version_id in await self._state.database.run(expiry_records.expired):
            delete = partial(expiry_records.delete_if_expired, project=project, name=name, version_id=version_id)
            async with self._state.lock(project, name):
                deleted += await self._state.database.run(delete)
                await self._state.refresh(project, name)
        return deleted

    async def work(self) -> None:
        """Delete expired versions until cancelled."""
        while True:
            try:
                await self.delete_expired()
            except Exception:
                log.exception("expired versions could not be deleted; the next attempt is in %.0f s", EXPIRY_S)
            await asyncio.sleep(EXPIRY_S)
