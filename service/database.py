"""The gateway's metadata database: one SQLite file. One gateway process is the only writer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import orjson
import sqlalchemy as sa

from adapters.sqlite import SqliteDatabase
from service.errors import DiskFull, Internal, SettingsError

MIGRATIONS = Path(__file__).parent / "migrations"
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Database(SqliteDatabase):
    """The gateway's database."""

    title: ClassVar[str] = "the metadata database"
    open_error: ClassVar[type[Exception]] = SettingsError
    disk_full_error: ClassVar[type[Exception]] = DiskFull
    query_error: ClassVar[type[Exception]] = Internal

    def __init__(self, path: Path) -> None:
        super().__init__(path, migrations=MIGRATIONS, thread_name="hatrack-db", json_deserializer=_json)

    async def open(self) -> None:
        """As the base's; the file and a directory that is made for it are for the gateway's user alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite gives its -wal and -shm the mode of the file itself
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        await super().open()


def _json(text: str) -> Any:
    """A stored JSON value. An older gateway stored values of any depth, and one such row must not hide all others."""
    try:
        return json.loads(text)
    except RecursionError:
        return orjson.loads(text)  # goes down to 1,024 levels, which no stored value exceeds
