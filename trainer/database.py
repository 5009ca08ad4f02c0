"""The trainer's records: a SQLite file, or a schema of a PostgreSQL server. The trainer is the only writer, but for the
looks of workers (`trainer.evaluate.evaluations.look_store`), which are one short transaction each."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

import sqlalchemy as sa

from adapters.database import database
from trainer.errors import DatabaseUnavailable, DiskFull, InternalError, SettingsError

FILE: Final = "jobs.db"
"""Of all kinds of runs: an older trainer, which knows jobs alone, must find it and refuse it as a newer one's."""
SCHEMA: Final = "hatrack_trainer"
"""Its schema on a server."""
STATE: Final = ("jobs", "evaluations", "ladders")
"""What it names, beside its file."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
metadata: Final = sa.MetaData()
"""All tables of it; each room declares its own."""


class OutcomeUnknown(DatabaseUnavailable):
    """A unit of work may have been saved, and the database does not say. What the row would name must stay."""


class Database(database.Database):
    """The trainer's database. Raises SettingsError if it cannot be opened; DiskFull, DatabaseUnavailable or
    InternalError in use.

    Args:
        path: The file.
        url: The server's database, in place of the file.
    """

    title: ClassVar[str] = "the trainer's database"
    open_error: ClassVar[type[Exception]] = SettingsError
    disk_full_error: ClassVar[type[Exception]] = DiskFull
    unavailable_error: ClassVar[type[Exception]] = DatabaseUnavailable
    query_error: ClassVar[type[Exception]] = InternalError
    unknown_error: ClassVar[type[Exception]] = OutcomeUnknown

    def __init__(self, path: Path, url: str | None = None) -> None:
        super().__init__(
            database.backend_for(path, url, SCHEMA, STATE), migrations=MIGRATIONS, thread_name="trainer-db"
        )
        self.path = path
