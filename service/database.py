"""The gateway's metadata database: a SQLite file, or a schema of a PostgreSQL server. One gateway writes to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import orjson
import sqlalchemy as sa

from adapters.database import database
from service.errors import DiskFull, Internal, SettingsError, Unavailable

T = TypeVar("T")
MIGRATIONS = Path(__file__).parent / "migrations"
SCHEMA: Final = "hatrack"
"""Its schema on a server."""
STATE: Final = ("adapters", "files", "grounding")
"""What it names, beside its file."""
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class OutcomeUnknown(Unavailable):
    """A unit of work may have been saved, and the database does not say. What the row would name must stay."""


class Database(database.Database):
    """The gateway's database.

    Args:
        path: The file.
        url: The server's database, in place of the file.
    """

    title: ClassVar[str] = "the metadata database"
    open_error: ClassVar[type[Exception]] = SettingsError
    disk_full_error: ClassVar[type[Exception]] = DiskFull
    unavailable_error: ClassVar[type[Exception]] = Unavailable
    query_error: ClassVar[type[Exception]] = Internal
    unknown_error: ClassVar[type[Exception]] = OutcomeUnknown

    def __init__(self, path: Path, url: str | None = None) -> None:
        backend = database.backend_for(path, url, SCHEMA, STATE)
        super().__init__(backend, migrations=MIGRATIONS, thread_name="hatrack-db", json_deserializer=_json)
        self.path = path


def _json(text: str) -> Any:
    """A stored JSON value. An older gateway stored values of any depth, and one such row must not hide all others."""
    try:
        return json.loads(text)
    except RecursionError:
        return orjson.loads(text)  # goes down to 1,024 levels, which no stored value exceeds
