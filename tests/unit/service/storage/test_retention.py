"""Old entries of audit and usage go, as the settings say, a few at a time; nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.access.audit import page
from service.access.tables import audit
from service.config import Settings
from service.database import Database
from service.storage import retention
from service.storage.retention import DAY_S, Deleted, Retention
from service.usage.engine_time import engine_time
from service.usage.records import usage

NOW = 20_000 * DAY_S
COUNTS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "charged_tokens")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "hatrack.db")
    await database.open()
    yield database
    await database.close()


def kept(database: Database, **days: float) -> Retention:
    return Retention(Settings(**days), database, lambda: float(NOW))


def add_audit(db: sa.Connection, count: int, days_ago: int) -> None:
    row = {"created_at": NOW - days_ago * DAY_S, "key_id": "admin", "project": "default", "action": "key.create"}
    db.execute(audit.insert(), [{**row, "target": str(number)} for number in range(count)])


def add_usage(db: sa.Connection, days_ago: int) -> None:
    hour = NOW - days_ago * DAY_S
    key = {"hour": hour, "project": "default", "key_id": "admin", "version": 0}
    db.execute(usage.insert(), [{**key, "adapter": name, **dict.fromkeys(COUNTS, 1)} for name in ("a", "b")])
    db.execute(engine_time.insert().values(hour=hour, up_s=1.0, busy_s=1.0, own_s=0.0))


async def test_old_entries_go_in_batches_and_the_audit_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    await database.run(lambda db: add_audit(db, 25, days_ago=40))
    await database.run(lambda db: add_audit(db, 5, days_ago=20))
    transactions = 0
    run = database.run

    async def counted(work: object) -> object:
        nonlocal transactions
        transactions += 1
        return await run(work)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "run", counted)
    assert await kept(database, audit_days=30).delete_old() == Deleted(audit=25, usage=0)
    assert transactions == 4, "three batches, and a look that finds nothing old"
    left = await run(lambda db: page(db, after=None, limit=100))
    assert [row.action for row in left] == ["audit.expire", *["key.create"] * 5]
    assert (left[0].key_id, left[0].detail) == ("system", {"before": NOW - 30 * DAY_S})
    assert await kept(database, audit_days=30).delete_old() == Deleted(audit=0, usage=0)


async def test_usage_goes_by_the_hour_with_the_engine_s_time(database: Database) -> None:
    for days_ago in (100, 63, 61, 0):
        await database.run(lambda db, ago=days_ago: add_usage(db, ago))
    assert await kept(database, usage_days=62).delete_old() == Deleted(audit=0, usage=6)
    for table in (usage, engine_time):
        hours = await database.run(lambda db, chosen=table: set(db.scalars(sa.select(chosen.c.hour))))
        assert hours == {NOW - 61 * DAY_S, NOW}


async def test_without_settings_everything_is_kept(database: Database) -> None:
    await database.run(lambda db: add_audit(db, 1, days_ago=10_000))
    await database.run(lambda db: add_usage(db, days_ago=10_000))
    assert await kept(database).delete_old() == Deleted(0, 0)
    before = asyncio.all_tasks()
    async with kept(database).running():
        assert asyncio.all_tasks() == before


async def test_it_deletes_at_once_and_others_have_the_database_in_between(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    monkeypatch.setattr(retention, "PAUSE_S", 0)
    await database.run(lambda db: add_audit(db, 200, days_ago=40))

    async def left() -> int:
        return await database.run(lambda db: int(db.scalar(sa.select(sa.func.count()).select_from(audit)) or 0))

    async with kept(database, audit_days=30).running():
        seen = [await left()]
        while seen[-1] > 100:
            seen.append(await left())
    assert len(set(seen)) > 10, "what others asked was answered in the midst of it"
