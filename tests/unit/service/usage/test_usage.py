"""Usage: counted in memory, added to a real database, and nothing lost on the way."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.database import Database, metadata
from service.engine.busy import EngineClock
from service.errors import DiskFull, HatrackError, Unavailable
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.record import Outcome, Record
from service.usage import engine_time
from service.usage.account import UsageAccount
from service.usage.engine_time import EngineMeter
from service.usage.records import usage
from tests.unit.service.access.clock import MIDNIGHT, Clock, caller
from tests.unit.service.inference.fakes import until

HOUR = MIDNIGHT + 10 * 3600
Row = tuple[int | str, ...]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "hatrack.db")
    await opened.open()
    yield opened
    await opened.close()


def account_of(database: Database, clock: Clock | None = None, **options: Any) -> UsageAccount:
    return UsageAccount(database, wall=(clock or Clock()).wall, **{"flush_s": 3600.0, **options})


def version(name: str, number: int) -> Target:
    return Target(label=name, engine_model="0" * 64, adapter=name, version=number, digest="0" * 64)


BASE = Target(label="smol", engine_model="smol")


def record(
    target: Target | None = BASE,
    key: str = "key_a",
    outcome: Outcome = "ok",
    used: TokenUsage | None = None,
    **more: Any,
) -> Record:
    project = more.pop("project", "default")
    return Record("r", "/v1/x", caller(key, project), target, outcome=outcome, usage=used, **more)


async def rows(database: Database) -> list[Row]:
    counted = [column for column in usage.columns if column.name != "engine_s"]
    chosen = sa.select(*counted).order_by(*usage.primary_key)
    return await database.run(lambda db: [tuple(row) for row in db.execute(chosen)])


async def fill_the_disk(database: Database) -> None:
    """SQLite then says what it says of a full disk, as soon as a write needs more than the file's free space."""
    await database.run(lambda db: db.exec_driver_sql(f"PRAGMA max_page_count = {_pages(db)}"))


def _pages(db: sa.Connection) -> int:
    return int(db.exec_driver_sql("PRAGMA page_count").scalar_one())


async def make_room(database: Database) -> None:
    await database.run(lambda db: db.exec_driver_sql("PRAGMA max_page_count = 1000000"))


async def test_the_migration_makes_the_table_that_the_code_uses(database: Database) -> None:
    def differences(db: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name == "usage", "compare_type": True}
        )
        alone = sa.MetaData(naming_convention=metadata.naming_convention)
        usage.to_metadata(alone)
        return list(compare_metadata(context, alone))

    assert await database.run(differences) == []


async def test_requests_add_up_by_hour_project_key_and_version(database: Database) -> None:
    clock = Clock()
    account = account_of(database, clock)
    account(record(version("voice", 3), used=TokenUsage(10, 5, 4)))
    account(record(version("voice", 3), used=TokenUsage(1, 2, 0)))
    account(record(version("voice", 4), used=TokenUsage(1, 1, 0)))
    account(record(BASE, used=TokenUsage(7, 8, 0)))
    account(record(BASE, key="key_b", project="acme", used=TokenUsage(7, 8, 0)))
    await account.flush()
    clock.pass_s(3599)
    account(record(version("voice", 3), used=TokenUsage(100, 50, 40)))
    clock.pass_s(1)
    account(record(version("voice", 3), used=TokenUsage(1, 1, 0)))
    await account.flush()
    assert await rows(database) == [
        (HOUR, "acme", "key_b", "smol", 0, 1, 0, 7, 8, 0, 15),
        (HOUR, "default", "key_a", "smol", 0, 1, 0, 7, 8, 0, 15),
        (HOUR, "default", "key_a", "voice", 3, 3, 0, 111, 57, 44, 168),
        (HOUR, "default", "key_a", "voice", 4, 1, 0, 1, 1, 0, 2),
        (HOUR + 3600, "default", "key_a", "voice", 3, 1, 0, 1, 1, 0, 2),
    ]
    assert (account.rows_written, account.requests_written, account.flushes, account.pending_rows) == (6, 7, 2, 0)


async def test_what_counts_as_an_error_and_what_is_charged(database: Database) -> None:
    account = account_of(database)
    account(Record("r", "/v1/x"))  # whose key is not known: nobody's
    account(record(outcome="left", used=TokenUsage(0, 3, exact=False), fallback_tokens=90))
    account(record(outcome="failed", estimate=90))  # the engine never had it
    account(record(outcome="cut", fallback_tokens=90))  # it had, and nobody counted
    for _ in range(3):
        account(record(None, outcome="refused", code="model_not_found"))
    await account.flush()
    assert await rows(database) == [
        (HOUR, "default", "key_a", "", 0, 3, 3, 0, 0, 0, 0),
        (HOUR, "default", "key_a", "smol", 0, 3, 2, 0, 3, 0, 93),
    ]


@pytest.mark.sqlite
async def test_a_full_disk_loses_nothing(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    account = account_of(database)
    account(record(used=TokenUsage(1, 1)))
    await account.flush()
    await fill_the_disk(database)
    for number in range(2000):
        account(record(version(f"voice-{number}", 1), used=TokenUsage(1, 1)))
    for failures in (1, 2):
        with pytest.raises(DiskFull):
            await account.flush()
        account(record(version("voice-7", 1), used=TokenUsage(1, 1)))
        assert (account.failed_flushes, account.pending_rows, account.rows_written) == (failures, 2000, 1)
    await make_room(database)
    await account.flush()
    found = {row[3]: row[5:9] for row in await rows(database)}
    assert len(found) == 2001
    assert (found["voice-7"], found["voice-8"]) == ((3, 0, 3, 3), (1, 0, 1, 1))
    assert (account.pending_rows, account.rows_written, account.requests_written) == (0, 2001, 2003)


@pytest.mark.sqlite
async def test_what_comes_while_a_write_fails_is_added_to_what_was_kept(database: Database) -> None:
    account = account_of(database)
    await fill_the_disk(database)
    for number in range(2000):
        account(record(version(f"voice-{number}", 1), used=TokenUsage(1, 1)))
    writing = asyncio.create_task(account.flush())
    # at every turn of the loop: between two looks a timer apart a write may have begun and failed
    for _ in range(100):
        if not account.pending_rows:
            break
        await asyncio.sleep(0)
    assert not writing.done()
    assert account.pending_rows == 0
    account(record(version("voice-7", 1), used=TokenUsage(2, 2)))
    account(record(version("new", 1), used=TokenUsage(3, 3)))
    with pytest.raises(DiskFull):
        await writing
    await make_room(database)
    await account.flush()
    found = {row[3]: row[5:9] for row in await rows(database)}
    assert (found["voice-7"], found["new"], found["voice-8"]) == ((2, 0, 3, 3), (1, 0, 3, 3), (1, 0, 1, 1))


async def test_rows_in_memory_are_bounded_and_sums_stay_right(database: Database) -> None:
    clock = Clock()
    account = account_of(database, clock, max_rows=10)
    for number in range(1000):
        account(record(version(f"voice-{number}", 1), key=f"key_{number % 2}", used=TokenUsage(2, 1)))
    assert account.pending_rows == 12
    await account.flush()
    found = await rows(database)
    assert sum(int(row[5]) for row in found) == 1000
    assert [row[5:8] for row in found if row[3] == ""] == [(495, 0, 990), (495, 0, 990)]
    clock.pass_s(3600)
    for number in range(11):
        account(record(version(f"voice-{number}", 1), used=TokenUsage(2, 1)))
    await account.flush()
    assert [row[0] for row in await rows(database) if row[3] == ""] == [HOUR, HOUR, HOUR + 3600]


class AnswersLost(Database):
    """One whose next answers are lost, though what was asked for is saved."""

    lost = 0

    async def run(self, work: Callable[[sa.Connection], Any], *, read_only: bool = False) -> Any:
        result = await super().run(work, read_only=read_only)
        if self.lost:
            self.lost -= 1
            raise Unavailable("the connection was lost in the moment of saving")
        return result


async def test_what_was_saved_though_nobody_said_so_counts_once(database: Database, tmp_path: Path) -> None:
    unreliable = AnswersLost(tmp_path / "hatrack.db")
    clock = Clock()
    engine = EngineClock(clock.monotonic)
    meter = EngineMeter(engine, lambda: 1, wall=clock.wall, monotonic=clock.monotonic)
    account = account_of(unreliable, clock, meter=meter)
    account(record(used=TokenUsage(10, 5)))
    clock.pass_s(4)
    unreliable.lost = 2
    for failures in (1, 2):
        with pytest.raises(Unavailable):
            await account.flush(whole=True)
        assert (account.failed_flushes, account.pending_rows) == (failures, failures)
        account(record(key="key_b", used=TokenUsage(1, 1)))
        clock.pass_s(1)
    await account.flush(whole=True)
    assert [(row[2], row[5], row[7]) for row in await rows(database)] == [("key_a", 1, 10), ("key_b", 2, 2)]
    assert (await database.run(lambda db: engine_time.total(db, 0, 2**40))).up_s == pytest.approx(6)
    assert (account.pending_rows, account.rows_written) == (0, 2)
    await unreliable.close()


@pytest.mark.sqlite
async def test_it_writes_by_itself_and_goes_on_after_a_failure(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    account = account_of(database, flush_s=0.005)
    await fill_the_disk(database)
    await account.open()
    try:
        with caplog.at_level(logging.INFO, "hatrack.usage"):
            for number in range(2000):
                account(record(version(f"voice-{number}", 1)))
            await until(lambda: account.failed_flushes >= 3)
            await make_room(database)
            await until(lambda: account.rows_written == 2000)
            await until(lambda: len(caplog.records) == 2)
    finally:
        await account.close()
    messages = [line.getMessage() for line in caplog.records]
    assert messages[0].startswith("usage could not be written and is kept in memory: the disk")
    assert messages[1:] == ["usage can be written again"], "a failure is told once, and its end"


async def test_a_polite_stop_writes_what_is_left(database: Database) -> None:
    account = account_of(database)
    await account.open()
    account(record())
    await account.close()
    assert len(await rows(database)) == 1


@pytest.mark.sqlite
async def test_a_stop_with_a_full_disk_says_what_is_lost(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    account = account_of(database)
    await fill_the_disk(database)
    for number in range(2000):
        account(record(version(f"voice-{number}", 1)))
    await account.close()
    [line] = [line for line in caplog.records if line.name == "hatrack.usage"]
    assert (line.levelname, line.__dict__["requests"]) == ("ERROR", 2000)
    await make_room(database)


async def test_who_leaves_while_it_is_written_breaks_nothing(database: Database) -> None:
    account, left = account_of(database), 0
    for number in range(50):
        account(record(version(f"voice-{number}", 1)))
        waiting = asyncio.create_task(account.flush())
        for _ in range(number % 5):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        left += waiting.cancelled()  # on a busy machine what was to be cut may have been written by then
    assert left >= 20  # those who left before the write's thread could begin, at the least
    await account.flush()
    assert [row[5] for row in await rows(database)] == [1] * 50


@pytest.mark.sqlite
async def test_a_crash_loses_only_what_was_not_flushed(database: Database, tmp_path: Path) -> None:
    account = account_of(database)
    account(record(used=TokenUsage(40, 2)))
    await account.flush()
    account(record(used=TokenUsage(1, 1)))
    # what another process finds in the file at this moment is what a `kill -9` would leave
    with sqlite3.connect(f"file:{tmp_path / 'hatrack.db'}?mode=ro", uri=True) as other:
        assert other.execute("SELECT requests, charged_tokens FROM usage").fetchall() == [(1, 42)]


async def test_the_days_count_is_what_was_charged_since_midnight(database: Database) -> None:
    clock = Clock(unix=MIDNIGHT - 1.0)
    account = account_of(database, clock)
    account(record(used=TokenUsage(1000, 1000)))
    await account.flush()
    clock.pass_s(1)
    account(record(used=TokenUsage(10, 5)))
    account(record(fallback_tokens=90))
    account(record(key="key_b", project="acme", used=TokenUsage(1, 1)))
    clock.pass_s(7200)
    account(record(version("voice", 1), used=TokenUsage(10, 5)))
    await account.flush()
    assert await account.charged_today() == {"key_a": 15 + 90 + 15, "key_b": 2}


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["count", "flush", "fill", "free"]), st.integers(0, 30), st.integers(0, 50)), max_size=25
)


@pytest.mark.sqlite
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
async def test_written_and_pending_are_always_what_was_counted(
    database: Database, operations: list[tuple[str, int, int]]
) -> None:
    await database.run(lambda db: db.execute(usage.delete()))
    account, expected = account_of(database, max_rows=8), 0
    for kind, which, tokens in operations:
        if kind == "count":
            account(record(version(f"voice-{which}", 1), key=f"key_{which % 3}", used=TokenUsage(tokens, 0)))
            expected += tokens
        elif kind == "flush":
            try:
                await account.flush()
            except DiskFull:
                assert account.pending_rows <= 8 + 3
        elif kind == "fill":
            await database.run(lambda db: db.exec_driver_sql(f"PRAGMA max_page_count = {_pages(db)}"))
        else:
            await make_room(database)
    await make_room(database)
    await account.flush()
    assert sum(int(row[7]) for row in await rows(database)) == expected


async def test_the_engines_time_is_added_up_and_its_hours_are_written_with_it(database: Database) -> None:
    clock = Clock()
    engine = EngineClock(clock.monotonic)
    meter = EngineMeter(engine, lambda: True, wall=clock.wall, monotonic=clock.monotonic)
    account = account_of(database, clock, meter=meter)
    entered = engine.enter()
    clock.pass_s(3)
    account(record(version("voice", 3), engine_s=engine.leave(entered)))
    with engine.own():
        clock.pass_s(1)
    clock.pass_s(16)
    await account.flush()
    stored = await database.run(lambda db: db.execute(sa.select(usage.c.adapter, usage.c.engine_s)).all())
    assert [tuple(row) for row in stored] == [("voice", pytest.approx(3))]
    seconds = await database.run(lambda db: engine_time.total(db, 0, 2**40))
    assert (seconds.up_s, seconds.busy_s, seconds.own_s) == pytest.approx((20, 4, 1))
    assert await database.run(engine_time.measured_since) == HOUR


async def test_an_idle_gateway_writes_the_engines_hours_once_a_minute(database: Database) -> None:
    clock = Clock()
    idle = EngineClock(clock.monotonic)
    meter = EngineMeter(idle, lambda: True, wall=clock.wall, monotonic=clock.monotonic)
    account = account_of(database, clock, meter=meter)
    clock.pass_s(59)
    await account.flush()
    assert (await database.run(lambda db: engine_time.total(db, 0, 2**40))).up_s == 0
    clock.pass_s(2)
    await account.flush()
    assert (await database.run(lambda db: engine_time.total(db, 0, 2**40))).up_s == pytest.approx(61)
    clock.pass_s(5)
    await account.close()
    assert (await database.run(lambda db: engine_time.total(db, 0, 2**40))).up_s == pytest.approx(66)


@pytest.mark.sqlite
async def test_engine_time_that_cannot_be_written_is_kept(database: Database) -> None:
    clock = Clock()
    engine = EngineClock(clock.monotonic)
    meter = EngineMeter(engine, lambda: True, wall=clock.wall, monotonic=clock.monotonic)
    account = account_of(database, clock, meter=meter)
    await database.run(lambda db: db.exec_driver_sql("ALTER TABLE engine_time RENAME TO gone"))
    with engine.own():
        clock.pass_s(4)
    with pytest.raises(HatrackError):
        await account.flush()
    await database.run(lambda db: db.exec_driver_sql("ALTER TABLE gone RENAME TO engine_time"))
    await account.flush()
    assert (await database.run(lambda db: engine_time.total(db, 0, 2**40))).busy_s == pytest.approx(4)
