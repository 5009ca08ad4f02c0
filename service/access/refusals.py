"""Refused requests in the audit: whose key is not known, and who asked for what their key may not do.

They are counted in memory and written once a minute, one entry for each reason, key and peer: a flood of bad keys costs
neither the disk nor the data path. What is counted apart is bounded, and so is what is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from service.access.audit import Actor, note
from service.access.caller import Caller
from service.access.tables import audit
from service.client.addresses import client_ip, peer_of
from service.database import Database
from service.errors import HatrackError

ACTION: Final = "access.refused"
NOBODY: Final = "anonymous"
"""In place of a key's id where no key was known."""
NO_PROJECT: Final = "(none)"
OTHER: Final = "(other)"
REFUSED: Final = frozenset({401, 403})
FLUSH_S: Final = 60.0
MAX_APART: Final = 32
"""Combinations of reason, key and peer told apart between two writes, of those whose key is known and of those whose
is not; more are counted together by reason and project. So whoever has no key hides nobody who has one."""
MAX_KEPT: Final = 5_000
"""Entries that are kept, of those whose key is known and of those whose is not; of more, the oldest go."""
MAX_PATH: Final = 128
_LOG = logging.getLogger("hatrack.access")


@dataclass(slots=True)
class Counted:
    """Refusals of one kind: how many, when the first and the last, and what the last asked for."""

    since: int
    until: int = 0
    count: int = 0
    path: str = ""
    request_id: str | None = None


Kind = tuple[str, str, str, str]
"""Code, key id, project, peer."""


class Refusals:
    """Counts refused requests and writes them to the audit.

    Args:
        database: Opened before ``running``.
        wall: Unix time, seconds.
    """

    def __init__(self, database: Database, *, wall: Callable[[], float] = time.time) -> None:
        self._database = database
        self._wall = wall
        self._counted: dict[Kind, Counted] = {}

    def note(
        self, status: int, code: str | None, caller: Caller | None, peer: str, path: str, request_id: str | None = None
    ) -> None:
        """Count a request that was answered with ``status``, where that is a refusal of access; takes microseconds.

        Args:
            peer: The client's address; of an IPv6 address the /64 counts.
        """
        if status not in REFUSED:
            return
        now, reason = int(self._wall()), code or str(status)
        key_id, project = (NOBODY, NO_PROJECT) if caller is None else (caller.key_id, caller.project)
        ip = client_ip(peer)
        kind = (reason, key_id, project, peer if ip is None else peer_of(ip))
        counted = self._counted.get(kind)
        if counted is None:
            counted = self._counted.setdefault(kind if self._has_room(kind) else _together(kind), Counted(now))
        counted.until, counted.path, counted.request_id = now, path[:MAX_PATH], request_id
        counted.count += 1

    def _has_room(self, kind: Kind) -> bool:
        """Whether ``kind`` may be told apart."""
        known = _has_key(kind)
        return sum(_has_key(apart) == known for apart in self._counted if apart[1] != OTHER) < MAX_APART

    async def flush(self) -> None:
        """Write what was counted. What cannot be written is counted on, and written later."""
        if not self._counted:
            return
        counted, self._counted = self._counted, {}
        try:
            await self._database.run(lambda db: _write(db, counted))
        except HatrackError as error:
            _LOG.warning("refused requests could not be written to the audit", extra={"reason": error.message})
            self._take_back(counted)

    def _take_back(self, counted: dict[Kind, Counted]) -> None:
        for kind, earlier in counted.items():
            later = self._counted.get(kind)
            if later is not None:
                later.since, later.count = earlier.since, later.count + earlier.count
            elif kind[1] == OTHER or self._has_room(kind):
                self._counted[kind] = earlier
            else:
                rest = self._counted.setdefault(_together(kind), Counted(earlier.since))
                rest.count, rest.until = rest.count + earlier.count, max(rest.until, earlier.until)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write once a minute meanwhile, and at the end."""
        writing = asyncio.create_task(self._write_on(), name="access-refusals")
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self.flush()

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()


def _has_key(kind: Kind) -> bool:
    """Whether the caller's key was known."""
    return kind[2] != NO_PROJECT


def _together(kind: Kind) -> Kind:
    """What a refusal is counted as where it is not told apart."""
    return (kind[0], OTHER, kind[2], OTHER)


def _write(db: sa.Connection, counted: dict[Kind, Counted]) -> None:
    for (reason, key_id, project, peer), refusals in counted.items():
        detail: dict[str, Any] = {
            "count": refusals.count,
            "peer": peer,
            "since": refusals.since,
            "until": refusals.until,
            "path": refusals.path,
        }
        note(db, Actor(key_id, project, refusals.request_id), ACTION, reason, detail)
    for kept in (audit.c.project == NO_PROJECT, audit.c.project != NO_PROJECT):
        refused = sa.and_(audit.c.action == ACTION, kept)
        last_to_go = sa.select(audit.c.id).where(refused).order_by(audit.c.id.desc()).offset(MAX_KEPT).limit(1)
        last_id = db.scalar(last_to_go)
        if last_id is not None:
            db.execute(audit.delete().where(refused, audit.c.id <= last_id))
