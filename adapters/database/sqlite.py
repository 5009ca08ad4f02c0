"""A database in one SQLite file (WAL). One process is the only writer."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from adapters.database.backend import Backend, Fault
from adapters.database.marker import Marker

BUSY_TIMEOUT_MS: Final = 5000
PRIMARY_CODE: Final = 0xFF
"""The bits of SQLite's error codes that say what kind it is."""
MIN_FREE_BYTES: Final = 1 << 20
"""A disk with less is full, where a write has failed."""


class SqliteFile(Backend):
    """The file at ``path``; it, and a directory that is made for it, are for its user alone."""

    readers = 0
    answer_timeout_s = None

    def __init__(self, path: Path, marker: Marker | None = None) -> None:
        self.path = path
        self.marker = marker
        self.place = str(path)
        self.directory = path.parent

    def create_engine(self, json_deserializer: Callable[[str], Any] | None) -> sa.Engine:
        """One connection, which is used by one thread at a time."""
        engine = sa.create_engine(
            f"sqlite:///{self.path}",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
            json_deserializer=json_deserializer,
            hide_parameters=True,  # a row may hold a secret, and a log has the error
        )
        sa.event.listen(engine, "connect", _on_connect)
        sa.event.listen(engine, "begin", _on_begin)
        return engine

    def prepare(self) -> None:
        """Create the file where there is none."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite gives its -wal and -shm the mode of the file itself
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.path.is_file()

    def revision(self) -> str | None:
        """Reads the file and writes nothing, so that an older release leaves alone what a newer one has written."""
        if not self.path.exists():
            return None
        address = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True)) as connection:
                row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError:  # a new file, or none that opening will not refuse in better words
            return None
        return None if row is None else str(row[0])

    def misplaced(self) -> str | None:
        """The file was moved to a server, and is older than what the home holds."""
        return None if self.marker is None else self.marker.disagreement(None)

    def begin(self, connection: sa.Connection, *, read_only: bool) -> None:
        """`_on_begin` has done it."""

    def begin_migration(self, connection: sa.Connection) -> None:
        """`_on_begin` has done it."""

    def hold(self) -> None:
        """The home's lock, which is taken before, keeps others out."""

    def mark(self, connection: sa.Connection) -> None:
        """As for `hold`."""

    def check_hold(self) -> None:
        """As for `hold`."""

    def release(self) -> None:
        """As for `hold`."""

    def fault(self, error: sa.exc.DBAPIError) -> Fault | None:
        """A full disk, or another `OperationalError`."""
        if not isinstance(error, sa.exc.OperationalError):
            return None
        code = getattr(error.orig, "sqlite_errorcode", 0)
        # SQLite calls it an I/O error where the index of its log cannot grow, or a log cannot be cut
        is_full = code == sqlite3.SQLITE_FULL or (code & PRIMARY_CODE == sqlite3.SQLITE_IOERR and self._is_full())
        return Fault.DISK_FULL if is_full else Fault.OTHER

    def _is_full(self) -> bool:
        """Whether the disk has no room for what a transaction may need."""
        return shutil.disk_usage(self.directory).free < MIN_FREE_BYTES

    def disk_full_message(self) -> str:
        """Names the directory."""
        return f"the disk under {self.directory} is full; nothing was changed"


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    # SQLAlchemy begins transactions itself (see _on_begin): the driver's own handling would leave DDL outside of them
    connection.isolation_level = None
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # what was answered survives a power cut
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
