"""One gateway a database: the second is refused, and a lock that is lost is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from adapters.database import database as of_adapters
from adapters.database import tenancy
from service.access.tables import projects
from service.cli.main import app
from service.database import Database
from service.errors import SettingsError, Unavailable
from tests.support.adapters import make_base
from tests.support.gateway import held_port
from tests.support.postgresql import TestServer
from trainer import database as of_trainer
from trainer.__main__ import HomeLocked
from trainer.__main__ import _refuse_held as refuse_held

LOCK_SESSIONS = "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND datname = "


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenancy, "GRACE_S", 0.3)
    monkeypatch.setattr(of_adapters, "HOLD_CHECK_S", 0.05)


@pytest.fixture
async def taken() -> list[str]:
    """Who was told that another one has the database."""
    return []


@pytest.fixture
async def first(postgresql: TestServer, empty: str, tmp_path: Path, taken: list[str]) -> AsyncIterator[Database]:
    database = Database(tmp_path / "first" / "hatrack.db", postgresql.url(empty))
    await database.open(lambda: taken.append("first"))
    yield database
    with suppress(RuntimeError):  # the test has closed it
        await database.close()


@pytest.fixture
async def second(postgresql: TestServer, empty: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "second" / "hatrack.db", postgresql.url(empty))
    yield database
    with suppress(RuntimeError):  # the test has closed it
        await database.close()


def write(db: sa.Connection) -> None:
    db.execute(projects.update().values(monthly_budget=1.0))


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another task brings about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def end_lock(server: TestServer, database: str) -> None:
    """End the session that has the lock, and no other one."""
    ended = server.execute(f"SELECT pg_terminate_backend(pid) {LOCK_SESSIONS}'{database}'")
    assert len(ended) == 1


async def test_the_second_gateway_is_refused_until_the_first_has_ended(
    first: Database, second: Database, postgresql: TestServer, empty: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"another process uses the schema `hatrack` in .* \(connected"):
        await second.open(lambda: None)
    trainer = of_trainer.Database(tmp_path / "jobs.db", postgresql.url(empty))
    await trainer.open(lambda: None)  # it has a schema of its own
    await trainer.close()
    await first.run(write)
    await first.close()
    await second.open(lambda: None)
    await second.run(write)


async def test_a_process_that_keeps_nobody_out_may_write_beside_the_one_that_does(
    first: Database, second: Database
) -> None:
    """A run's worker records its looks so."""
    await second.run(write)
    await first.run(write)


@pytest.mark.parametrize("writes_at_once", [True, False])
async def test_a_lock_that_is_lost_is_taken_again(
    first: Database, second: Database, postgresql: TestServer, empty: str, taken: list[str], writes_at_once: bool
) -> None:
    end_lock(postgresql, empty)
    if writes_at_once:
        await first.run(write)
    await until(lambda: postgresql.execute(f"SELECT 1 {LOCK_SESSIONS}'{empty}'") == [(1,)])
    with pytest.raises(SettingsError, match="another process uses"):
        await second.open(lambda: None)
    await first.run(write)
    assert taken == []


async def test_who_was_away_while_another_one_had_the_database_writes_nothing_and_ends(
    first: Database,
    second: Database,
    postgresql: TestServer,
    empty: str,
    taken: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as cut_off:  # the first one does not see that its session has ended
        cut_off.setattr(tenancy.Tenancy, "check", lambda _self, **_: None)
        end_lock(postgresql, empty)
        await second.open(lambda: None)
    with pytest.raises(Unavailable, match="is not held by this process now; nothing was saved"):
        await first.run(write)
    await until(lambda: taken == ["first"])
    await second.run(write)
    await second.close()
    with pytest.raises(Unavailable, match="is not held by this process now"):  # what it keeps in memory is out of date
        await first.run(write)
    await asyncio.sleep(0.2)
    assert taken == ["first"]


async def test_the_commands_say_so_in_one_line_and_touch_nothing(
    first: Database, postgresql: TestServer, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgresql.url(empty)
    given = {"HOME": tmp_path / "other", "BASE_MODEL": make_base(tmp_path / "base"), "DATABASE_URL": url}
    for name, value in given.items():
        monkeypatch.setenv(f"HATRACK_{name}", str(value))
    with held_port() as held:  # the default one may be another gateway's
        monkeypatch.setenv("HATRACK_PORT", str(held.getsockname()[1]))
        refused = await asyncio.to_thread(CliRunner().invoke, app, ["serve", "--no-trainer"])
    line = " ".join(refused.stderr.split())
    assert (refused.exit_code, line.startswith("error: another process uses the schema `hatrack` in")) == (1, True), (
        line
    )
    assert not (tmp_path / "other" / "admin.key").exists()

    trainer = of_trainer.Database(tmp_path / "jobs.db", url)
    await trainer.open(lambda: None)
    another = of_trainer.Database(tmp_path / "another" / "jobs.db", url)
    with pytest.raises(HomeLocked, match="another process uses the schema `hatrack_trainer`"):
        await asyncio.to_thread(refuse_held, another)
    await trainer.close()
    await asyncio.to_thread(refuse_held, another)
    await another.close()
