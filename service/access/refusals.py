"""Records refused requests (401, 403) in the audit.

They are counted in memory and written once a minute, one entry per reason, key and peer, so a flood of bad keys costs
neither disk writes nor time on the data path. Both the number of counters and the number of kept entries are bounded.
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
"""Stands for the key's id if the request had no valid key."""
NO_PROJECT: Final = "(none)"
OTHER: Final = "(other)"
REFUSED: Final = frozenset({401, 403})
FLUSH_S: Final = 60.0
MAX_SEPARATE: Final = 32
"""Combinations of reason, key and peer counted separately between two writes; with and without a valid key, each. Any
more are counted together by reason and project. So requests without a key cannot crowd out those with one."""
MAX_KEPT: Final = 5_000
"""Entries kept in the audit, with and without a valid key, each; older ones are deleted."""
MAX_PATH: Final = 128
_LOG = logging.getLogger("hatrack.access")


@dataclass(slots=True)
class RefusalCount:
    """Refusals of one kind: their number, first and last time, and the last one's path and request id."""

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
        self._counted: dict[Kind, RefusalCount] = {}

    def note(
        self, status: int, code: str | None, caller: Caller | None, peer: str, path: str, request_id: str | None = None
    ) -> None:
        """Count a request answered with ``status``, if that refuses access; takes microseconds.

        Args:
            peer: The client's address; IPv6 addresses are grouped by /64.
        """
        if status not in REFUSED:
            return
        now, reason = int(self._wall()), code or str(status)
        key_id, project = (NOBODY, NO_PROJECT) if caller is None else (caller.key_id, caller.project)
        ip = client_ip(peer)
        kind = (reason, key_id, project, peer if ip is None else peer_of(ip))
        counted = self._counted.get(kind)
        if counted is None:
            counted = self._counted.setdefault(
                kind if self._has_room(kind) else _overflow_kind(kind), RefusalCount(now)
            )
        counted.until, counted.path, counted.request_id = now, path[:MAX_PATH], request_id
        counted.count += 1

    def _has_room(self, kind: Kind) -> bool:
        """Whether ``kind`` may be counted separately."""
        has_key = _has_key(kind)
        return sum(_has_key(counted) == has_key for counted in self._counted if counted[1] != OTHER) < MAX_SEPARATE

    async def flush(self) -> None:
        """Write what was counted. If the write fails, the counts are kept for the next one."""
        if not self._counted:
            return
        counted, self._counted = self._counted, {}
        try:
            await self._database.run(lambda db: _write(db, counted))
        except HatrackError as error:
            _LOG.warning("refused requests could not be written to the audit", extra={"reason": error.message})
            self._restore(counted)

    def _restore(self, counted: dict[Kind, RefusalCount]) -> None:
        for kind, earlier in counted.items():
            later = self._counted.get(kind)
            if later is not None:
                later.since, later.count = earlier.since, later.count + earlier.count
            elif kind[1] == OTHER or self._has_room(kind):
                self._counted[kind] = earlier
            else:
                rest = self._counted.setdefault(_overflow_kind(kind), RefusalCount(earlier.since))
                rest.count, rest.until = rest.count + earlier.count, max(rest.until, earlier.until)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write once a minute while this is open, and once on leaving."""
        writing = asyncio.create_task(self._write_periodically(), name="access-refusals")
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self.flush()

    async def _write_periodically(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()


def _has_key(kind: Kind) -> bool:
    """Whether the request had a valid key."""
    return kind[2] != NO_PROJECT


def _overflow_kind(kind: Kind) -> Kind:
    """The kind under which a refusal is counted once there are too many separate ones."""
    return (kind[0], OTHER, kind[2], OTHER)


def _write(db: sa.Connection, counted: dict[Kind, RefusalCount]) -> None:
    for (reason, key_id, project, peer), refusals in counted.items():
        detail: dict[str, Any] = {
            "count": refusals.count,
            "peer": peer,
            "since": refusals.since,
            "until": refusals.until,
            "path": refusals.path,
        }
        note(db, Actor(key_id, project, refusals.request_id), ACTION, reason, detail)
    for project_filter in (audit.c.project == NO_PROJECT, audit.c.project != NO_PROJECT):
        refused = sa.and_(audit.c.action == ACTION, project_filter)
        newest_surplus = sa.select(audit.c.id).where(refused).order_by(audit.c.id.desc()).offset(MAX_KEPT).limit(1)
        last_id = db.scalar(newest_surplus)
        if last_id is not None:
            db.execute(audit.delete().where(refused, audit.c.id <= last_id))
