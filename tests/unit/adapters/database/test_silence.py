"""A server whose answers are lost, or that freezes: units fail and others go on, and memory follows the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.database import database as of_adapters
from adapters.database import resync, sockets
from service.access.tables import projects
from service.database import Database
from service.errors import Unavailable
from tests.support.postgresql import TestServer
from tests.support.postgresql_proxy import Proxy, proxy_before

BUDGET = sa.select(projects.c.monthly_budget)


def write(db: sa.Connection) -> None:
    db.execute(projects.update().values(monthly_budget=1.0))


class Follower:
    """Keeps the budget in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.budget: float | None = None
        self.reloads = 0
        database.resync.add(self.reload)

    async def reload(self) -> None:
        self.budget = await self._database.run(lambda db: db.scalar(BUDGET))
        self.reloads += 1


@pytest.fixture
async def proxy(postgresql: TestServer) -> AsyncIterator[Proxy]:
    async with proxy_before(postgresql) as proxy:
        yield proxy


@pytest.fixture
async def database(
    proxy: Proxy, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    monkeypatch.setattr(sockets, "PING_S", 0.5)
    monkeypatch.setattr(of_adapters, "CLOSE_S", 0.5)
    monkeypatch.setattr(resync, "RETRY_S", 0.1)
    database = Database(tmp_path / "hatrack.db", proxy.url(empty))
    await database.open(lambda: None)
    yield database
    with suppress(RuntimeError):  # the test has closed it
        await database.close()


async def test_after_a_lost_answer_to_commit_memory_is_read_again(proxy: Proxy, database: Database) -> None:
    follower = Follower(database)
    proxy.lose_commits = 1
    with pytest.raises(Unavailable):
        await database.run(write)
    await database.resync.idle()
    assert (proxy.losses, follower.budget) == (1, 1.0)


async def test_it_is_read_again_when_the_server_is_back(proxy: Proxy, database: Database) -> None:
    follower = Follower(database)
    proxy.lose_commits = 1
    with pytest.raises(Unavailable):
        await database.run(write)
    proxy.go_away()
    with pytest.raises(Unavailable):
        await database.run(write)
    assert follower.reloads == 0
    proxy.come_back()
    await database.resync.idle()
    assert follower.budget == 1.0


async def test_what_failed_before_it_was_saved_is_not_in_doubt(proxy: Proxy, database: Database) -> None:
    follower = Follower(database)
    proxy.go_away()
    with pytest.raises(Unavailable):
        await database.run(write)
    proxy.come_back()
    await database.run(write)
    await database.resync.idle()
    assert follower.reloads == 0


async def test_a_reload_that_fails_is_repeated(database: Database) -> None:
    attempts = []

    async def reload() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise Unavailable("not now")

    database.resync.add(reload)
    database.resync.request()
    await database.resync.idle()
    assert len(attempts) == 3


async def test_a_reload_that_is_removed_is_not_at_work_any_more(database: Database) -> None:
    begun, ended, others = asyncio.Event(), [], []

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("slow")

    async def quick() -> None:
        others.append("quick")

    database.resync.add(slow)
    database.resync.add(quick)
    database.resync.request()
    await begun.wait()
    await database.resync.remove(slow)
    assert ended == ["slow"]
    await database.resync.idle()
    assert others == ["quick"]


async def test_connections_that_have_frozen_while_idle_are_replaced(proxy: Proxy, database: Database) -> None:
    await asyncio.gather(*(database.run(lambda db: db.scalar(BUDGET), read_only=True) for _ in range(3)))
    proxy.freeze()
    async with asyncio.timeout(30):
        await database.run(write)
        assert await database.run(lambda db: db.scalar(BUDGET), read_only=True) == 1.0


async def test_a_unit_whose_connection_freezes_fails_and_others_go_on(
    proxy: Proxy, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database.backend, "answer_timeout_s", 1.0)

    def work(db: sa.Connection) -> None:
        write(db)
        proxy.freeze()  # from another thread; nothing of it needs the loop
        db.scalar(BUDGET)

    async with asyncio.timeout(30):
        with pytest.raises(Unavailable, match="nothing was saved"):
            await database.run(work)
        while True:  # the lock's connection was frozen, too
            try:
                assert await database.run(lambda db: db.scalar(BUDGET)) is None
                break
            except Unavailable:
                continue


async def test_a_unit_that_nobody_waits_for_is_cut_off_too(
    proxy: Proxy, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database.backend, "answer_timeout_s", 1.0)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(db: sa.Connection) -> None:
        proxy.freeze()
        loop.call_soon_threadsafe(begun.set)
        write(db)

    caller = asyncio.create_task(database.run(work))
    await begun.wait()
    caller.cancel()
    async with asyncio.timeout(30):
        while True:
            try:
                await database.run(write)
                break
            except Unavailable:
                continue


async def test_closing_does_not_wait_for_a_server_that_has_frozen(proxy: Proxy, database: Database) -> None:
    def work(db: sa.Connection) -> None:
        proxy.freeze()
        write(db)

    unit = asyncio.create_task(database.run(work))
    queued = asyncio.create_task(database.run(write))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    async with asyncio.timeout(30):
        await database.close()
    assert time.monotonic() - began < of_adapters.CLOSE_S + 20
    ended = await asyncio.gather(unit, queued, return_exceptions=True)
    assert [type(error) for error in ended] == [Unavailable, Unavailable]
    database.resync.request()  # as a unit does that ends so late
    assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({"database-resync"})
