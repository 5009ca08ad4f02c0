"""A home's databases are moved into an empty PostgreSQL, whole or not at all, and everything goes on there."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from service.access.tables import audit
from service.cli.main import app
from service.cli.run import unusable_data
from service.config import Settings
from service.database import Database
from service.errors import SettingsError
from service.server.instance import InstanceLock
from service.storage.errors import BackupError, TargetNotEmpty
from service.storage.garbage import GRACE_S, find_garbage
from service.storage.move import move_databases
from tests.support.postgresql import TestServer
from tests.unit.service.storage.storage_home import FILE, RUN, STORE, StorageHome
from trainer.database import Database as TrainerDatabase

AWKWARD = {"z": "a\0b", "a": [1.5, None, 2**60], "m": "\ud800 \U0001f600", "n": float("nan")}


@pytest.fixture
def target(postgresql: TestServer) -> Iterator[str]:
    """The URL of a database without any table."""
    name = postgresql.create()
    yield postgresql.url(name)
    postgresql.drop(name)


@pytest.fixture
def moving(home: StorageHome, target: str) -> Settings:
    """The home's settings, with both databases on the server from now on."""
    return Settings(**{**dict(home.settings), "database_url": target, "trainer_database_url": target})


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a SQLite file, by table."""
    with closing(sqlite3.connect(path)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        chosen = [name for name in names if not name.startswith("sqlite_")]
        return {name: sorted(db.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr) for name in chosen}  # noqa: S608


def as_in_sqlite(db: sa.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a schema as `rows` gives them."""
    tables = sa.MetaData()
    tables.reflect(db)
    found: dict[str, list[tuple[Any, ...]]] = {}
    for table in tables.sorted_tables:
        columns = [sa.cast(c, sa.Text) if isinstance(c.type, sa.JSON) else c for c in table.columns]
        values = [
            tuple(int(value) if isinstance(value, bool) else value for value in row)
            for row in db.execute(sa.select(*columns)).all()
        ]
        found[table.name] = sorted(values, key=repr)
    return found


async def everything(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    gateway = Database(settings.home / "hatrack.db", settings.database_address)
    trainer = TrainerDatabase(settings.home / "trainer" / "jobs.db", settings.trainer_database_address)
    try:
        return await gateway.run(as_in_sqlite), await trainer.run(as_in_sqlite)
    finally:
        await gateway.close()
        await trainer.close()


async def test_every_row_is_there_and_numbers_go_on(home: StorageHome, moving: Settings) -> None:
    files = [home.path / "hatrack.db", home.path / "trainer" / "jobs.db"]
    before = [rows(path) for path in files]
    moved = move_databases(moving)
    assert [each.rows for each in moved] == [
        {name: len(found) for name, found in tables.items() if name != "alembic_version"} for tables in before
    ]
    assert all("postgresql://" in each.place for each in moved)
    assert [rows(path) for path in files] == before, "the files are as they were"
    after = await everything(moving)
    for tables, found in zip(before, after, strict=True):
        assert {name: len(values) for name, values in found.items()} == {
            name: len(values) for name, values in tables.items()
        }
    assert after[0]["files"] == before[0]["files"]
    assert {row[0] for row in before[1]["runs"]} == {row[0] for row in after[1]["runs"]}

    database = Database(home.path / "hatrack.db", moving.database_address)
    await database.open()
    try:
        listed = home.put_file("file-next", b"next")
        await database.run(listed)
        numbers = await database.run(lambda db: db.execute(sa.text("SELECT id, seq FROM files ORDER BY seq")).all())
    finally:
        await database.close()
    assert [row.id for row in numbers][-1] == "file-next"
    assert numbers[-1].seq > max(row.seq for row in numbers[:-1])


async def test_a_number_that_a_deleted_row_had_is_not_given_again(home: StorageHome, moving: Settings) -> None:
    with closing(sqlite3.connect(home.path / "hatrack.db")) as db:
        db.execute("INSERT INTO audit (created_at, key_id, project, action, target) VALUES (1, 'k', 'p', 'a', 't')")
        (last,) = db.execute("SELECT max(id) FROM audit").fetchone()
        db.execute("DELETE FROM audit")
        db.commit()
    move_databases(moving)
    database = Database(home.path / "hatrack.db", moving.database_address)
    insert = audit.insert().values(created_at=2, key_id="k", project="p", action="a", target="t").returning(audit.c.id)
    try:
        assert await database.run(lambda db: db.scalar(insert)) == last + 1
    finally:
        await database.close()


async def test_what_sqlite_takes_and_postgresql_does_not_is_replaced(home: StorageHome, moving: Settings) -> None:
    with closing(sqlite3.connect(home.path / "hatrack.db")) as db:
        db.execute("UPDATE files SET filename = ? WHERE id = ?", ("a\0b.md", FILE))
        db.execute("UPDATE versions SET metadata = ?", (json.dumps(AWKWARD),))
        db.commit()
    move_databases(moving)
    database = Database(home.path / "hatrack.db", moving.database_address)
    try:
        name = await database.run(lambda db: db.scalar(sa.text(f"SELECT filename FROM files WHERE id = '{FILE}'")))  # noqa: S608
        stored = await database.run(lambda db: db.scalar(sa.text("SELECT metadata::text FROM versions")))
    finally:
        await database.close()
    assert name == "a\ufffdb.md"
    assert list(json.loads(stored)) == ["z", "a", "m", "n"]
    assert json.loads(stored) == {"z": "a\ufffdb", "a": [1.5, None, 2**60], "m": "\ufffd \U0001f600", "n": None}


def test_a_schema_with_tables_is_refused_and_left_alone(moving: Settings) -> None:
    move_databases(moving)
    with pytest.raises(TargetNotEmpty, match="DROP SCHEMA hatrack CASCADE"):
        move_databases(moving)


def test_a_row_that_is_refused_moves_nothing(home: StorageHome, moving: Settings, postgresql: TestServer) -> None:
    with closing(sqlite3.connect(home.path / "hatrack.db")) as db:
        db.execute("UPDATE files SET project = 'nowhere'")  # SQLite has not checked it: foreign keys were off
        db.commit()
    with pytest.raises(BackupError, match="Nothing was moved"):
        move_databases(moving)
    database = str(moving.database_address).partition("?")[0].rpartition("/")[2]
    assert postgresql.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'hatrack'", database) == []


def test_what_stops_the_second_database_leaves_the_first_one_unmoved(
    home: StorageHome, moving: Settings, postgresql: TestServer
) -> None:
    """Or the next try would find tables, and be refused."""
    database = str(moving.database_address).partition("?")[0].rpartition("/")[2]
    postgresql.execute("CREATE SCHEMA hatrack_trainer CREATE TABLE somebodys (id INT)", database)
    with pytest.raises(TargetNotEmpty, match="hatrack_trainer"):
        move_databases(moving)
    assert postgresql.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'hatrack'", database) == []
    postgresql.execute("DROP SCHEMA hatrack_trainer CASCADE", database)
    assert len(move_databases(moving)) == 2


def test_a_home_that_is_in_use_older_or_empty_is_refused(home: StorageHome, moving: Settings, tmp_path: Path) -> None:
    lock = InstanceLock(home.path)
    with pytest.raises(BackupError, match="another gateway"):
        move_databases(moving)
    lock.release()
    with pytest.raises(BackupError, match="HATRACK_DATABASE_URL is not set"):
        move_databases(home.settings)
    with pytest.raises(BackupError, match="there is nothing to move"):
        move_databases(moving.model_copy(update={"home": tmp_path / "nowhere"}))
    with closing(sqlite3.connect(home.path / "hatrack.db")) as db:
        db.execute("UPDATE alembic_version SET version_num = '0014'")
        db.commit()
    with pytest.raises(BackupError, match="has the schema 0014, and this release writes"):
        move_databases(moving)


def test_garbage_is_told_by_the_database_on_the_server(
    home: StorageHome, moving: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackupError, match="has no tables in the schema `hatrack`"):
        find_garbage(moving)
    now = time.time
    monkeypatch.setattr("service.storage.garbage.time.time", lambda: now() + 2 * GRACE_S)

    def places(settings: Settings) -> set[str]:
        return {each.paths[0].relative_to(home.path).as_posix() for each in find_garbage(settings)}

    before = places(home.settings)
    move_databases(moving)
    for name in ("hatrack.db", "trainer/jobs.db"):
        (home.path / name).unlink()
    (home.path / "files" / "file-unlisted").write_bytes(b"x")
    assert places(moving) == {*before, "files/file-unlisted"}
    assert (home.path / "grounding" / f"{STORE}.db").exists()
    assert (home.path / "trainer" / "jobs" / RUN).exists()


def test_the_command_says_what_was_moved_and_what_is_next(
    home: StorageHome, moving: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATRACK_HOME", str(home.path))
    monkeypatch.setenv("HATRACK_BASE_MODEL", home.settings.base_model)
    monkeypatch.setenv("HATRACK_DATABASE_URL", str(moving.database_address))
    done = CliRunner().invoke(app, ["move-database"])
    assert done.exit_code == 0, done.output
    assert f"{home.path / 'hatrack.db'} → postgresql://" in done.stdout
    assert "hatrack doctor" in done.stdout
    again = CliRunner().invoke(app, ["move-database", "--json"])
    assert (again.exit_code, json.loads(again.stderr)["error"]["code"]) == (1, "home_not_empty")


async def test_an_empty_database_is_not_used_where_there_is_state(home: StorageHome, moving: Settings) -> None:
    """Or the start would remove all that it does not name."""
    before = home.content()
    for problem in unusable_data(moving):
        assert "`hatrack move-database`" in problem
    assert len(unusable_data(moving)) == 2, "of the gateway and of the trainer"
    (home.path / "hatrack.db").rename(home.path / "away.db")
    database = Database(home.path / "hatrack.db", moving.database_address)
    with pytest.raises(SettingsError, match=r"holds state \(adapters, files, grounding\)"):
        await database.open()
    await database.close()
    (home.path / "away.db").rename(home.path / "hatrack.db")
    move_databases(moving)
    assert unusable_data(moving) == []
    assert home.content().keys() - before.keys() == {"database.json", "trainer/database.json"}
    assert home.content().items() > before.items()
