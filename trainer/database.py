"""The trainer's records: one SQLite file. The trainer is the only writer, but for the looks of workers
(`trainer.evaluate.evaluations.look_store`), which are one short transaction each."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

import sqlalchemy as sa

from adapters.sqlite import SqliteDatabase
from trainer.errors import DiskFull, InternalError, SettingsError

FILE: Final = "jobs.db"
"""Of all kinds of runs: an older trainer, which knows jobs alone, must find it and refuse it as a newer one's."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
metadata: Final = sa.MetaData()
"""All tables of the file; each room declares its own."""


class Database(SqliteDatabase):
    """The trainer's database. Raises SettingsError if it cannot be opened, DiskFull or InternalError in use."""

    title: ClassVar[str] = "the trainer's database"
    open_error: ClassVar[type[Exception]] = SettingsError
    disk_full_error: ClassVar[type[Exception]] = DiskFull
    query_error: ClassVar[type[Exception]] = InternalError

    def __init__(self, path: Path) -> None:
        super().__init__(path, migrations=MIGRATIONS, thread_name="trainer-db")
