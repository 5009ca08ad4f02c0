from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from adapters.base import BaseDescription
from service.agents import Agent, Bases, ServedBase
from service.config import Settings
from service.database import MIGRATIONS, Database, metadata
from service.errors import SettingsError
from service.registry import alias_records, pin_records, records, storage_records, tables
from service.registry.split import Split

OURS = ("projects", "adapters", "versions", "aliases", "alias_history", "project_weights", "corrupt", "verdicts")


async def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    database = Database(tmp_path / "hatrack.db")
    await database.open()

    def differences(db: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name in OURS, "compare_type": True}
        )
        subset = sa.MetaData(naming_convention=metadata.naming_convention)
        for name in OURS:
            metadata.tables[name].to_metadata(subset)
        return list(compare_metadata(context, subset))

    try:
        assert await database.run(differences) == []
        assert await database.run(lambda db: db.scalar(sa.select(tables.projects.c.id))) == "default"
    finally:
        await database.close()


@pytest.mark.sqlite
async def test_a_file_that_is_no_database_and_one_of_a_newer_release_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, however long one looks at it" * 20)
    with pytest.raises(SettingsError, match="cannot be opened"):
        await Database(tmp_path / "text.db").open()
    with sqlite3.connect(tmp_path / "newer.db") as raw:
        raw.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        raw.execute("INSERT INTO alembic_version VALUES ('9999')")
    raw.close()
    before = (tmp_path / "newer.db").read_bytes()
    with pytest.raises(SettingsError, match="was written by a newer release: its schema is 9999") as refused:
        await Database(tmp_path / "newer.db").open()
    assert "Nothing was changed" in str(refused.value)
    assert (tmp_path / "newer.db").read_bytes() == before
    assert not (tmp_path / "newer.db-wal").exists()


FIRST_RELEASE = """
INSERT INTO adapters (id, project, name, next_version, created_at) VALUES (1, 'default', 'voice', 3, 100);
INSERT INTO versions (id, adapter_id, number, digest, state, settings, metadata, rank, alpha, target_modules, bytes,
                      zero_effect, base, config, warnings, created_at, ready_at)
    VALUES (1, 1, 1, 'aa', 'ready', '{}', '{}', 8, 16, '[]', 9, 0, '{}', x'7b7d', '[]', 100, 101),
           (2, 1, 2, 'bb', 'ready', '{}', '{}', 8, 16, '[]', 9, 0, '{}', x'7b7d', '[]', 200, 201);
INSERT INTO alias_history (id, adapter_id, alias, version, action, parent_id, created_at)
    VALUES (1, 1, 'live', 1, 'push', NULL, 101), (2, 1, 'live', 2, 'promote', 1, 201),
           (3, 1, 'old', 1, 'promote', NULL, 202), (4, 1, 'old', NULL, 'delete', 3, 203);
INSERT INTO aliases (adapter_id, alias, version, history_id, updated_at) VALUES (1, 'live', 2, 2, 201);
"""


@pytest.mark.sqlite
async def test_a_database_of_the_first_release_keeps_its_aliases_and_their_history(
    tmp_path: Path, base: BaseDescription
) -> None:
    path = tmp_path / "hatrack.db"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_RELEASE.replace("0, '{}', x", f"0, '{base.fingerprint.model_dump_json()}', x"))
    old.close()

    database = Database(path)
    await database.open()
    try:
        found = await database.run(lambda db: records.find(db, "default", "voice"))
        assert found is not None
        assert (found.aliases, found.row.pinned_at) == ({"live": 2}, None)
        assert [row.number for row in found.versions] == [1, 2]
        past = await database.run(lambda db: alias_records.history(db, 1, "live"))
        assert [(move.target, move.action) for move in past] == [(2, "promote"), (1, "push")]
        assert await database.run(lambda db: alias_records.rollback_target(db, 1, "live")) == 1
        gone = await database.run(lambda db: alias_records.history(db, 1, "old"))
        assert [(move.target, move.action) for move in gone] == [(None, "delete"), (1, "promote")]

        counted = await database.run(lambda db: storage_records.stored_bytes(db, "default"))
        assert counted == 18, "the weights of both versions"

        split = Split.of({1: 90, 2: 10})
        assert await database.run(lambda db: alias_records.move(db, 1, "live", split, "split"))
        assert await database.run(lambda db: alias_records.rollback_target(db, 1, "live")) == 2
        await database.run(lambda db: pin_records.set_pin(db, 1))
        nobody: Any = None
        bases = Bases([ServedBase(base, 1, [Agent("engine", Settings(), nobody, nobody, nobody)])])
        assert await database.run(lambda db: pin_records.needs(db, bases)) == {1: {base.served_name: 2}}
        assert await database.run(lambda db: db.exec_driver_sql("PRAGMA foreign_key_check").all()) == []
    finally:
        await database.close()
