"""The engines' own hours: how long they were up, how long busy, and how much of that was the gateway's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from adapters.database.sql import insert
from adapters.database.types import BigInt
from service.database import metadata
from service.engine.busy import EngineClock, EngineClocks

HOUR_S: Final = 3600
IDLE_WRITE_S: Final = 60.0
"""While nothing runs, the engine's hours are written this often: an idle gateway does not write every two seconds."""

engine_time: Final = sa.Table(
    "engine_time",
    metadata,
    # Unix seconds of the hour's beginning
    sa.Column("hour", BigInt, primary_key=True, autoincrement=False),
    # in which there was an engine process, busy or not
    sa.Column("up_s", sa.Float, nullable=False),
    # in which any request was in it
    sa.Column("busy_s", sa.Float, nullable=False),
    # of the busy time, the share of the gateway's own requests: proofs and warming
    sa.Column("own_s", sa.Float, nullable=False),
)


@dataclass(slots=True)
class EngineSeconds:
    """Seconds of the engine: up, of that busy, of that for the gateway itself."""

    up_s: float = 0.0
    busy_s: float = 0.0
    own_s: float = 0.0

    def add(self, other: EngineSeconds) -> None:
        """Add ``other`` to these, in place."""
        self.up_s += other.up_s
        self.busy_s += other.busy_s
        self.own_s += other.own_s


class EngineMeter:
    """Sums up the engine's seconds between two writes.

    Args:
        clock: Of the requests in the engine.
        engines_up: How many engines have a process now.
        wall: Unix time, seconds.
        monotonic: Seconds.
    """

    def __init__(
        self,
        clock: EngineClock | EngineClocks,
        engines_up: Callable[[], int],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._engines_up = engines_up
        self._wall = wall
        self._monotonic = monotonic
        self._read_at = self._written_at = monotonic()
        self._busy_s, self._own_s = clock.busy_s, clock.own_s
        self._pending: dict[int, EngineSeconds] = {}

    def read(self) -> None:
        """Count the time since the last reading; to be called every few seconds."""
        now, busy_s, own_s = self._monotonic(), self._clock.busy_s, self._clock.own_s
        passed = now - self._read_at
        hour = int(self._wall())
        seconds = self._pending.setdefault(hour - hour % HOUR_S, EngineSeconds())
        busy = busy_s - self._busy_s
        # requests are in an engine that is up: what was cut by its end is time of the engine, too
        seconds.add(EngineSeconds(max(busy, passed * self._engines_up()), busy, own_s - self._own_s))
        self._read_at, self._busy_s, self._own_s = now, busy_s, own_s

    @property
    def due(self) -> bool:
        """Whether what was counted should be written now."""
        busy = any(seconds.busy_s for seconds in self._pending.values())
        return busy or self._monotonic() - self._written_at >= IDLE_WRITE_S

    def take(self) -> dict[int, EngineSeconds]:
        """What was counted since the last write, by hour."""
        self._written_at = self._monotonic()
        pending, self._pending = self._pending, {}
        return {hour: seconds for hour, seconds in pending.items() if seconds.up_s or seconds.busy_s}

    def put_back(self, taken: Mapping[int, EngineSeconds]) -> None:
        """Keep what could not be written."""
        for hour, seconds in taken.items():
            self._pending.setdefault(hour, EngineSeconds()).add(seconds)


def add(db: sa.Connection, hours: Mapping[int, EngineSeconds]) -> None:
    """Add seconds to the stored hours."""
    if not hours:
        return
    statement = insert(db, engine_time)
    names = EngineSeconds.__slots__
    counted = {name: engine_time.c[name] + statement.excluded[name] for name in names}
    rows = [{"hour": hour} | {name: getattr(seconds, name) for name in names} for hour, seconds in hours.items()]
    db.execute(statement.on_conflict_do_update(index_elements=["hour"], set_=counted), rows)


def total(db: sa.Connection, start: int, end: int) -> EngineSeconds:
    """The seconds of the hours that begin at ``start`` or later and before ``end``."""
    sums = [sa.func.coalesce(sa.func.sum(engine_time.c[name]), 0.0) for name in EngineSeconds.__slots__]
    row = db.execute(sa.select(*sums).where(engine_time.c.hour >= start, engine_time.c.hour < end)).one()
    return EngineSeconds(*map(float, row))


def measured_since(db: sa.Connection) -> int | None:
    """Unix seconds of the first hour that was measured; None if none was: earlier requests have no engine time."""
    first: int | None = db.scalar(sa.select(sa.func.min(engine_time.c.hour)))
    return first
