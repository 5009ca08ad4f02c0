"""Accounts usage in memory as requests end, and adds it to the database every few seconds.

A request costs one dictionary lookup and no disk write. Unwritten counts are at most one flush interval old, so
a `kill -9` or a power cut loses the usage of at most the last `HATRACK_USAGE_FLUSH_S` seconds (2 by default), and
whatever could not be written to a full disk; a graceful stop loses nothing. What is written has a number, and is
written again under it if it is not known whether it was saved, as when the connection to the server is lost: it counts
once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import sqlalchemy as sa
from prometheus_client.metrics_core import Metric as Family

from service.database import Database
from service.errors import DiskFull, HatrackError
from service.telemetry import metrics
from service.usage import engine_time
from service.usage import records as usage_records
from service.usage.counter import MAX_ROWS, UsageCounter
from service.usage.engine_time import EngineMeter, EngineSeconds
from service.usage.records import RowKey, UsageCounts

DAY_S: Final = 86_400
_LOG = logging.getLogger("hatrack.usage")


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one transaction writes."""

    number: int
    rows: dict[RowKey, UsageCounts]
    hours: dict[int, EngineSeconds]


class UsageAccount(UsageCounter):
    """Writes what it counts to the database.

    Args:
        flush_s: Seconds between two writes.
        meter: Counts the engine's hours, which are written with the usage; None: they are not counted.
        wall: Unix time, seconds.

    For the metrics: ``rows_written``, ``requests_written``, ``flushes``, ``failed_flushes`` (each since the start),
    ``pending_rows`` now.
    """

    def __init__(
        self,
        database: Database,
        *,
        flush_s: float,
        meter: EngineMeter | None = None,
        max_rows: int = MAX_ROWS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(max_rows=max_rows, wall=wall)
        self._database = database
        self._flush_s = flush_s
        self._meter = meter
        self._writer = secrets.token_hex(16)
        self._number = 0
        self._batch: _Batch | None = None
        """What was being written when it failed, and may be saved all the same."""
        self.writing = asyncio.Lock()
        """Held while usage is written: whoever holds it can add what the database has to what is pending."""
        self._writes: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self.rows_written = 0
        self.requests_written = 0
        self.flushes = 0
        self.failed_flushes = 0

    @property
    def pending_rows(self) -> int:
        """Number of rows that no write has taken yet, and of those that may not be saved, since their write failed."""
        return super().pending_rows + (0 if self._batch is None else len(self._batch.rows))

    def pending_engine_s(self, since: int) -> dict[str, float]:
        """Seconds of the engine by project that are not written, of the hours since ``since`` (Unix s)."""
        seconds: dict[str, float] = {}
        for rows in (self._rows, {} if self._batch is None else self._batch.rows):
            for (hour, project, *_), counts in rows.items():
                if hour >= since:
                    seconds[project] = seconds.get(project, 0.0) + counts.engine_s
        return seconds

    # writing

    async def open(self) -> None:
        """Start writing periodically; the database must be open."""
        self._ticker = asyncio.create_task(self._tick(), name="usage-flush")

    async def close(self) -> None:
        """Write what is left and stop; what cannot be written is logged as lost."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
            self._ticker = None
        try:
            await self.flush(whole=True)
        except HatrackError as error:
            kept = [self._rows] if self._batch is None else [self._rows, self._batch.rows]
            lost = sum(counts.requests for rows in kept for counts in rows.values())
            _LOG.error("the usage of the last requests is lost: %s", error.message, extra={"requests": lost})

    async def flush(self, *, whole: bool = False) -> None:
        """Write the counts so far. If the caller is cancelled, the write still completes.

        Args:
            whole: Write the engine's hours even if it has been idle.

        Raises:
            HatrackError: The database could not be written; the counts are kept for the next flush.
        """
        write = asyncio.create_task(self._write(whole))
        self._writes.add(write)
        write.add_done_callback(self._wrote)
        await asyncio.shield(write)

    def _wrote(self, write: asyncio.Task[None]) -> None:
        self._writes.discard(write)
        if not write.cancelled():
            write.exception()  # retrieve it even if the caller was cancelled, or asyncio would log it

    async def _write(self, whole: bool) -> None:
        async with self.writing:
            if self._batch is not None:
                if self._meter is not None:
                    self._meter.read()  # however long it cannot be written, each hour keeps its own time
                await self._write_batch(self._batch)
            hours = self._engine_hours(whole)
            if self._rows or hours:
                self._number += 1
                await self._write_batch(_Batch(self._number, self.take_rows(), hours))

    async def _write_batch(self, batch: _Batch) -> None:
        rows = batch.rows

        def add(db: sa.Connection) -> None:
            if usage_records.begin_batch(db, self._writer, batch.number):
                usage_records.add(db, rows)
                engine_time.add(db, batch.hours)

        try:
            await self._database.run(add)
        except BaseException as error:
            self.failed_flushes += 1
            if isinstance(error, DiskFull) and self._batch is None:  # nothing is saved
                self.put_back(rows)
                if self._meter is not None:
                    self._meter.put_back(batch.hours)
            else:
                self._batch = batch
            raise
        self._batch = None
        if not rows:
            return
        self.written()
        self.flushes += 1
        self.rows_written += len(rows)
        self.requests_written += sum(counts.requests for counts in rows.values())

    def _engine_hours(self, whole: bool) -> dict[int, EngineSeconds]:
        """The engine's hours that are to be written now."""
        if self._meter is None:
            return {}
        self._meter.read()
        return self._meter.take() if whole or self._rows or self._meter.due else {}

    async def _tick(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._flush_s)
            try:
                await self.flush()
            except HatrackError as error:
                if not failing:  # once, not every two seconds of a full disk
                    _LOG.error("usage could not be written and is kept in memory: %s", error.message)
                failing = True
            except Exception:
                _LOG.exception("usage could not be written and is kept in memory")
                failing = True
            else:
                if failing:
                    _LOG.info("usage can be written again")
                failing = False

    # reading

    async def charged_today(self) -> dict[str, int]:
        """Tokens charged to each key (by id) since midnight UTC, as the database has them."""
        now = int(self._wall())
        return await self._database.run(partial(usage_records.charged_since, start=now - now % DAY_S))


class UsageSource:
    """Metrics of the usage account."""

    name = "usage"

    def __init__(self, usage: UsageAccount) -> None:
        self._usage = usage

    async def families(self) -> Iterator[Family]:
        """Rows written, rows pending, failed writes."""
        usage = self._usage
        return iter(
            [
                metrics.USAGE_ROWS.value(usage.rows_written),
                metrics.USAGE_PENDING.value(usage.pending_rows),
                metrics.USAGE_ERRORS.value(usage.failed_flushes),
            ]
        )
