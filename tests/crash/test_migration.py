"""kill -9 at random moments of a migration: the database is the old one or the new one, and the next start goes on."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from adapters.database.database import Database as AnyDatabase
from adapters.database.migrations import head
from service.database import MIGRATIONS, Database
from tests.crash.test_backup import Killer, seconds_of
from tests.support.adapters import make_base
from tests.support.old_var import unpack, versions
from trainer.database import MIGRATIONS as TRAINER_MIGRATIONS
from trainer.database import Database as TrainerDatabase

OPENED = {
    "hatrack.db": (Database, MIGRATIONS),
    "trainer/jobs.db": (TrainerDatabase, TRAINER_MIGRATIONS),
}

BEFORE_ALEMBIC = "none"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oldest home that is packed, as its version left it."""
    directory = tmp_path_factory.mktemp("old")
    base = make_base(directory / "base")
    return unpack(versions()[0], directory / "var", base_dir=base, gateway="http://127.0.0.1:9")


def migrate(database: Callable[[Path], AnyDatabase], path: Path) -> None:
    """Open it, as the first start of a new version does."""

    async def open_and_close() -> None:
        opened = database(path)
        await opened.open()
        await opened.close()

    asyncio.run(open_and_close())


def content(path: Path) -> tuple[str, list[str]]:
    """The revision, and everything in the file as SQL; fails where SQLite finds it damaged."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        named = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = db.execute("SELECT version_num FROM alembic_version").fetchone() if named else [BEFORE_ALEMBIC]
        return str(row[0]), list(db.iterdump())


@pytest.mark.parametrize("name", OPENED)
def test_a_migration_that_is_killed_at_any_moment_is_not_begun_or_whole(home: Path, tmp_path: Path, name: str) -> None:
    database, migrations = OPENED[name]
    before = content(home / name)
    assert before[0] != head(migrations), "there is nothing to migrate"

    def fresh(directory: str) -> Path:
        path = tmp_path / directory / name
        shutil.copytree(home, tmp_path / directory)
        return path

    whole = fresh("whole")
    killer = Killer(seconds_of(lambda: migrate(database, whole)))
    after = content(whole)
    assert after[0] == head(migrations)
    tried = 0
    while killer.left:
        tried += 1
        path = fresh(f"killed-{tried}")
        killer.kill(lambda path=path: migrate(database, path))  # type: ignore[misc]
        assert content(path) in (before, after), "half of it is there"
        migrate(database, path)
        assert content(path) == after
        shutil.rmtree(path.parent if name == "hatrack.db" else path.parent.parent)
