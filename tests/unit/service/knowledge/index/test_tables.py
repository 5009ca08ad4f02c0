"""The migrations make the tables that the code uses."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.database import Database, metadata
from service.knowledge.index import tables

OURS = (tables.stores, tables.store_files, tables.store_batches)


async def test_the_newest_schema_is_that_of_the_tables(tmp_path: Path) -> None:
    database = Database(tmp_path / "hatrack.db")
    await database.open()
    names = {table.name for table in OURS}

    def differences(db: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name in names, "compare_type": True}
        )
        subset = sa.MetaData(naming_convention=metadata.naming_convention)
        metadata.tables["projects"].to_metadata(subset)
        for table in OURS:
            table.to_metadata(subset)
        return [one for one in compare_metadata(context, subset) if "projects" not in str(one)]

    try:
        assert await database.run(differences) == []
    finally:
        await database.close()
