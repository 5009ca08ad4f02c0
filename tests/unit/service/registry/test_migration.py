from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.database import Database, metadata
from service.registry import tables


async def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    database = Database(tmp_path / "hatrack.db")
    await database.open()
    ours = {table.name for table in (tables.projects, tables.adapters, tables.versions, tables.aliases)} | {
        tables.alias_history.name,
        tables.corrupt.name,
    }

    def differences(db: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name in ours, "compare_type": True}
        )
        subset = sa.MetaData(naming_convention=metadata.naming_convention)
        for name in ours:
            metadata.tables[name].to_metadata(subset)
        return list(compare_metadata(context, subset))

    try:
        assert await database.run(differences) == []
        assert await database.run(lambda db: db.scalar(sa.select(tables.projects.c.id))) == "default"
    finally:
        await database.close()
