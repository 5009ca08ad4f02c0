"""The metadata database: SQLAlchemy over SQLite (WAL), migrated by Alembic at start.

One gateway process is the only writer, so every unit of work runs as one transaction on one worker thread: writes are
serialised without ``SQLITE_BUSY``, and the event loop never waits on a disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from service.errors import DiskFull, Internal, SettingsError

T = TypeVar("T")
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 5000
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Database:
    """Runs units of work, each a function of one connection, in a transaction of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = sa.create_engine(
            f"sqlite:///{path}",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
            json_deserializer=_json,
        )
        sa.event.listen(self._engine, "connect", _on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hatrack-db")

    async def open(self) -> None:
        """Create the file where there is none and bring it to the newest schema.

        Raises:
            SettingsError: The file is not a database, or was written by a newer Hatrack.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite gives its -wal and -shm the mode of the file itself
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        await asyncio.get_running_loop().run_in_executor(self._thread, self._migrate)

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except sa.exc.DatabaseError as error:
            raise SettingsError(f"{self.path} cannot be opened as Hatrack's database: {error.orig}") from error

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction: committed when it returns, rolled back when it raises.

        A caller that is cancelled leaves the transaction to finish by itself: work is never cut in the middle.

        Raises:
            DiskFull: SQLite could not write.
        """
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work))

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise DiskFull(f"the disk under {self.path.parent} is full; nothing was changed") from error
            raise Internal(f"the metadata database could not be used ({type(error.orig).__name__})") from error

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=True)


def _json(text: str) -> Any:
    """A stored JSON value. An older gateway stored values of any depth, and one such row must not hide all others."""
    try:
        return json.loads(text)
    except RecursionError:
        return orjson.loads(text)  # goes down to 1,024 levels, which no stored value exceeds


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    # SQLAlchemy begins transactions itself (see _on_begin): the driver's own handling would leave DDL outside of them
    connection.isolation_level = None
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # an answered mutation survives a power cut
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
