"""The trainer's records: SQLAlchemy over one SQLite file (WAL), migrated by Alembic at start.

The trainer is the only writer. Every unit of work runs as one transaction on one thread, so that the event loop never
waits on a disk, and two changes never meet.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

from trainer.errors import Broken, NoSpace, SettingsError

T = TypeVar("T")
FILE: Final = "jobs.db"
"""Of all kinds of runs: an older trainer, which knows jobs alone, must find it and refuse it as a newer one's."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS: Final = 5000
metadata: Final = sa.MetaData()
"""All tables of the file; each room declares its own."""


class Database:
    """Runs units of work, each a function of one connection, in a transaction of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = sa.create_engine(
            f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        sa.event.listen(self._engine, "connect", _on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer-db")

    async def open(self) -> None:
        """Create the file where there is none and bring it to the newest schema.

        Raises:
            SettingsError: The file is not a database, or was written by a newer trainer.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._migrate)

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["directory"] = self.path.parent
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:  # a revision that is not among ours
            raise SettingsError(f"{self.path} was written by a newer trainer ({error})") from error
        except (DatabaseError, sqlite3.DatabaseError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise SettingsError(f"{self.path} cannot be opened as the trainer's database: {reason}") from error

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction: committed when it returns, rolled back when it raises.

        A caller that is cancelled leaves the transaction to finish by itself: work is never cut in the middle.

        Raises:
            NoSpace: SQLite could not write.
        """
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work))

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            with self._engine.begin() as db:
                return work(db)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise NoSpace(f"the disk under {self.path.parent} is full; nothing was changed") from error
            raise Broken(f"the trainer's database could not be used ({type(error.orig).__name__})") from error

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown(wait=True)


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    # SQLAlchemy begins transactions itself (see _on_begin): the driver's own handling would leave DDL outside of them
    connection.isolation_level = None
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # an answered run survives a power cut
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(db: sa.Connection) -> None:
    db.exec_driver_sql("BEGIN IMMEDIATE")
