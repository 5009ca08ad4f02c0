"""A metadata database: SQLAlchemy over one SQLite file (WAL), migrated by Alembic at start.

One process is the only writer, so every unit of work runs as one transaction on one worker thread: writes are
serialised without ``SQLITE_BUSY``, and the event loop never waits on a disk. Gateway and trainer each have one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

T = TypeVar("T")
BUSY_TIMEOUT_MS: Final = 5000


def newer_schema(path: Path, migrations: Path) -> str | None:
    """What is wrong with opening a database whose schema is not among ours, as a sentence; None if nothing is.

    Reads the file and writes nothing, so that an older release leaves alone what a newer one has written.
    """
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError:  # a new file, or none that opening will not refuse in better words
        return None
    return None if row is None else newer_revision(str(path), row[0], migrations)


def newer_revision(place: str, revision: str, migrations: Path) -> str | None:
    """What is wrong with a database at a revision that is not among ours, as a sentence; None if it is one of ours."""
    scripts = ScriptDirectory(str(migrations))
    try:
        known = scripts.get_revision(revision) is not None
    except CommandError:
        known = False
    if known:
        return None
    return (
        f"{place} was written by a newer release: its schema is {revision}, this release knows those up to "
        f"{scripts.get_current_head()}. Nothing was changed. Start the newer release, or restore the backup that was "
        "made before the upgrade (deploy/UPGRADE.md)"
    )


class SqliteDatabase:
    """Runs units of work, each a function of one connection, in a transaction of its own.

    A subclass names the errors that its users see; each takes a message.

    Args:
        path: The file.
        migrations: Alembic's script directory.
        thread_name: Of the worker thread.
        json_deserializer: Reads stored JSON values; None: `json.loads`.
    """

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

    def check_schema(self) -> None:
        """Refuse a file that a newer release has written, before anything else is done. Raises open_error."""
        if (problem := newer_schema(self.path, self._migrations)) is not None:
            raise self.open_error(problem)

    def _migrate(self) -> None:
        self.check_schema()
        config = Config()
        config.set_main_option("script_location", str(self._migrations).replace("%", "%%"))
        config.attributes["directory"] = self.path.parent
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
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
