"""A metadata database: SQLAlchemy over one SQLite file (WAL), migrated by Alembic at start.

One process is the only writer, so every unit of work runs as one transaction on one worker thread: writes are
serialised without ``SQLITE_BUSY``, and the event loop never waits on a disk. Gateway and trainer each have one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

T = TypeVar("T")
BUSY_TIMEOUT_MS: Final = 5000


class SqliteDatabase:
    """Runs units of work, each a function of one connection, in a transaction of its own.

    A subclass names the errors that its users see; each takes a message.

    Args:
        path: The file.
        migrations: Alembic's script directory.
        thread_name: Of the worker thread.
        json_deserializer: Reads stored JSON values; None: `json.loads`.
    """

    program: ClassVar[str]
    """Whose database it is."""
    title: ClassVar[str]
    """What its errors call it."""
    open_error: ClassVar[type[Exception]]
    disk_full_error: ClassVar[type[Exception]]
    query_error: ClassVar[type[Exception]]

    def __init__(
        self,
        path: Path,
        *,
        migrations: Path,
        thread_name: str,
        json_deserializer: Callable[[str], Any] | None = None,
    ) -> None:
        self.path = path
        self._migrations = migrations
        self._engine = sa.create_engine(
            f"sqlite:///{path}",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
            json_deserializer=json_deserializer,
        )
        sa.event.listen(self._engine, "connect", _on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread_name)

    async def open(self) -> None:
        """Create the file where there is none and bring it to the newest schema.

        Raises:
            open_error: The file is not a database, or was written by a newer release.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._migrate)

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(self._migrations).replace("%", "%%"))
        config.attributes["directory"] = self.path.parent
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:  # a revision that is not among ours
            raise self.open_error(f"{self.path} was written by a newer {self.program} ({error})") from error
        except (DatabaseError, sqlite3.DatabaseError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise self.open_error(f"{self.path} cannot be opened as {self.title}: {reason}") from error

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction: committed when it returns, rolled back when it raises.

        A caller that is cancelled leaves the transaction to finish by itself: work is never cut in the middle.

        Raises:
            disk_full_error: SQLite could not write.
            query_error: It could not be used for another reason.
        """
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work))

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                message = f"the disk under {self.path.parent} is full; nothing was changed"
                raise self.disk_full_error(message) from error
            raise self.query_error(f"{self.title} could not be used ({type(error.orig).__name__})") from error

    async def close(self) -> None:
        """Wait for queued work and close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=True)


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
