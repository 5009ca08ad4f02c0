"""Counts usage in memory as requests end, in rows of hour, project, key, adapter and version."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from service.telemetry.record import Record
from service.usage.records import RowKey, UsageCounts

HOUR_S: Final = 3600
MAX_ROWS: Final = 100_000
"""Maximum number of rows kept in memory while they cannot be written; about 40 MB. What was being written when it
failed may be as much again."""
ERRORS: Final = frozenset({"refused", "failed", "cut"})
"""Outcomes that count as errors; a client's disconnect does not."""


class UsageCounter:
    """The ``Account`` that counts by hour (UTC), project, key and adapter's version.

    A request whose key is not known is nobody's usage. One whose model stands for nothing counts under no adapter, so
    that invented names make no rows. Counted are the engine's tokens, or, for a stream that was cut, its events.

    Args:
        wall: Unix time, seconds.
    """

    def __init__(self, *, max_rows: int = MAX_ROWS, wall: Callable[[], float] = time.time) -> None:
        self._max_rows = max_rows
        self._wall = wall
        self._rows: dict[RowKey, UsageCounts] = {}
        self._crowded_hour: int | None = None

    @property
    def pending_rows(self) -> int:
        """Number of rows not taken yet."""
        return len(self._rows)

    def __call__(self, record: Record) -> None:
        """Count a finished request."""
        caller, target, used = record.caller, record.target, record.usage
        if caller is None:
            return
        now = int(self._wall())
        adapter, version = "", 0
        if target is not None:
            adapter, version = target.adapter or target.label, target.version or 0
        counts = self._row((now - now % HOUR_S, caller.project, caller.key_id, adapter, version))
        counts.requests += 1
        if record.outcome in ERRORS:
            counts.errors += 1
        if used is not None:
            counts.prompt_tokens += used.prompt_tokens
            counts.completion_tokens += used.completion_tokens
            counts.cached_tokens += used.cached_tokens
        counts.charged_tokens += record.tokens or 0
        counts.engine_s += record.engine_s

    def take_rows(self) -> dict[RowKey, UsageCounts]:
        """What was counted so far; it is forgotten here."""
        rows, self._rows = self._rows, {}
        return rows

    def put_back(self, rows: dict[RowKey, UsageCounts]) -> None:
        """Keep what was taken and could not be written."""
        fresh, self._rows = self._rows, rows
        for key, counts in fresh.items():
            self._row(key).add(counts)

    def written(self) -> None:
        """What was taken is written."""
        self._crowded_hour = None

    def _row(self, key: RowKey) -> UsageCounts:
        counts = self._rows.get(key)
        if counts is None:
            if len(self._rows) >= self._max_rows:
                return self._crowded(key)
            counts = self._rows[key] = UsageCounts()
        return counts

    def _crowded(self, key: RowKey) -> UsageCounts:
        """Beyond the bound, one row per key: its totals stay right, but hours and adapters are merged."""
        hour, project, key_id, _, _ = key
        if self._crowded_hour is None:
            self._crowded_hour = hour
        return self._rows.setdefault((self._crowded_hour, project, key_id, "", 0), UsageCounts())
