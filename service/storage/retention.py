"""Deletes entries of the audit and of usage that are older than the settings keep them.

A little at a time: each transaction deletes one small batch, and the database is left to others in between, so that no
request waits for it. What is deleted of the audit is written into the audit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from service.access.audit import SYSTEM, note
from service.access.tables import audit
from service.concurrency import repeat
from service.config import Settings
from service.database import Database
from service.usage.engine_time import engine_time
from service.usage.records import usage

EVERY_S: Final = 3600.0
BATCH: Final = 500
"""Rows of the audit in one transaction; of usage it is the rows of one hour."""
PAUSE_S: Final = 0.05
DAY_S: Final = 86_400
EXPIRE: Final = "audit.expire"
"""The action of the audit's entry about its own old entries."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many rows a round has deleted."""

    audit: int
    usage: int


class Retention:
    """Keeps audit and usage as long as the settings say; for ever where they say nothing.

    Args:
        wall: Unix time, seconds.
    """

    def __init__(self, settings: Settings, database: Database, wall: Callable[[], float] = time.time) -> None:
        self._database = database
        self._audit_days = settings.audit_days
        self._usage_days = settings.usage_days
        self._wall = wall

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Delete what is too old, at once and every hour, as long as this is open."""
        if self._audit_days is None and self._usage_days is None:
            yield
            return
        task = asyncio.create_task(repeat(self.delete_old, EVERY_S), name="retention")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def delete_old(self) -> Deleted:
        """Delete what is too old now."""
        now = int(self._wall())
        audited = used = 0
        if self._audit_days is not None:
            before = now - int(self._audit_days * DAY_S)
            audited = await self._database.run(lambda db: _delete_audit(db, before, is_first=True))
            if audited:
                audited += await self._in_batches(lambda db: _delete_audit(db, before))
        if self._usage_days is not None:
            before_hour = now - int(self._usage_days * DAY_S)
            used = await self._in_batches(lambda db: _delete_hour(db, usage, before_hour))
            used += await self._in_batches(lambda db: _delete_hour(db, engine_time, before_hour))
        return Deleted(audited, used)

    async def _in_batches(self, delete: Callable[[sa.Connection], int]) -> int:
        total = 0
        while count := await self._database.run(delete):
            total += count
            await asyncio.sleep(PAUSE_S)
        return total


def _delete_audit(db: sa.Connection, before: int, *, is_first: bool = False) -> int:
    """Delete a batch of the oldest entries, of those from before then; the first batch of a round is noted with it."""
    # by their ids, which are in the order of time: to look for times would read the whole table, as there is no index
    oldest = db.execute(sa.select(audit.c.id, audit.c.created_at).order_by(audit.c.id).limit(BATCH)).all()
    ids = [row.id for row in oldest if row.created_at < before]
    if ids:
        db.execute(audit.delete().where(audit.c.id.in_(ids)))
        if is_first:
            note(db, SYSTEM, EXPIRE, "audit", {"before": before})
    return len(ids)


def _delete_hour(db: sa.Connection, table: sa.Table, before: int) -> int:
    """Delete the rows of the oldest hour, if it is from before then."""
    hour = db.scalar(sa.select(sa.func.min(table.c.hour)))
    if hour is None or hour >= before:
        return 0
    return int(db.execute(table.delete().where(table.c.hour == hour)).rowcount)
