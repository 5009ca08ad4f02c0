"""Moves a home's databases from SQLite into an empty PostgreSQL: all rows of both, or none."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa

from adapters.database.backend import DatabaseFault
from adapters.database.migrations import head, upgrade
from adapters.database.postgresql import PostgresServer, dump_json
from adapters.database.sqlite import SqliteFile
from service.config import Settings
from service.errors import SettingsError
from service.server.instance import InstanceLock
from service.storage import layout
from service.storage.errors import BackupError, TargetNotEmpty

BATCH: Final = 1000
"""Rows that are read and written at once."""
VERSION_TABLE: Final = "alembic_version"
Row = tuple[Any, ...]
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Moved:
    """One database that was moved.

    Attributes:
        source: The file, which is left as it was.
        place: Where its rows are now.
        rows: How many each table has.
    """

    source: Path
    place: str
    rows: dict[str, int]


def move_databases(settings: Settings) -> list[Moved]:
    """Copy what the home's SQLite files hold to where the settings say that it shall be. No gateway may run.

    Raises:
        BackupError: A gateway runs, there is nothing to move, a file is an older release's, or the server cannot be
            used. Nothing was changed.
        TargetNotEmpty: There are tables already.
    """
    targets = [
        (settings.home / name, backend, migrations)
        for name, (backend, migrations) in layout.databases(settings, trainer_anywhere=True).items()
        if isinstance(backend, PostgresServer)
    ]
    if not targets:
        raise BackupError("HATRACK_DATABASE_URL is not set; it says where the database shall go")
    present = [target for target in targets if target[0].is_file()]
    if not present:
        raise BackupError(f"there is nothing to move: {targets[0][0]} does not exist (HATRACK_HOME)")
    with _nothing_runs(settings):
        for path, server, migrations in present:
            _refuse_elsewhere(server)
            _refuse_older(path, migrations)
        with ExitStack() as transactions:  # all are committed when all rows are there: a second try needs empty schemas
            return [transactions.enter_context(_moving(*target)) for target in present]


@contextmanager
def _nothing_runs(settings: Settings) -> Iterator[None]:
    """Hold the locks of gateway and trainer. Raises BackupError if one runs in the home."""
    try:
        lock = InstanceLock(settings.home)
    except SettingsError as error:
        raise BackupError(str(error)) from error
    try:
        with _locked(settings.home / layout.TRAINER_LOCK):
            yield
    finally:
        lock.release()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    if not path.exists():
        yield
        return
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BackupError(f"a trainer is running in {path.parent}; stop it first") from None
    finally:
        os.close(lock)


def _refuse_elsewhere(server: PostgresServer) -> None:
    """Raise BackupError if the database was moved to another place already: the file is older than what is there."""
    if (problem := server.misplaced()) is not None:
        raise BackupError(f"{problem}. Nothing was moved")


def _refuse_older(path: Path, migrations: Path) -> None:
    revision, newest = SqliteFile(path).revision(), head(migrations)
    if revision != newest:
        raise BackupError(
            f"{path} has the schema {revision}, and this release writes {newest}. Start the gateway of this release "
            "once without HATRACK_DATABASE_URL, stop it, and try again"
        )


@contextmanager
def _moving(path: Path, server: PostgresServer, migrations: Path) -> Iterator[Moved]:
    """Copy one database in a transaction, which is committed at the end. Raises BackupError, TargetNotEmpty.

    The home is marked first. Killed before the end, nothing is moved, and the next try, or a start on the file once the
    marker is deleted, goes on from there.
    """
    address = f"file:{quote(str(path.absolute()))}?mode=rw"  # a log that a killed process left is read, too
    engine = None
    try:
        engine = server.create_engine(None)
        with (
            _unmarked_on_failure(server),
            closing(sqlite3.connect(address, uri=True, isolation_level=None)) as source,
            engine.begin() as target,
        ):
            source.execute("BEGIN")  # one state of the file, whoever else has it open
            server.begin_migration(target)
            _refuse_tables(server, target)
            upgrade(target, migrations, path.parent)
            rows = _copy(source, target, path)
            server.settle(target)  # before it is saved: from then on the file must not be used any more
            # another database may take long after this one, and this transaction is idle meanwhile
            target.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout TO 0")
            yield Moved(path, server.place, rows)
    except DatabaseFault as error:
        raise BackupError(str(error)) from error
    except sqlite3.Error as error:
        raise BackupError(f"cannot read {path}: {error}. Nothing was moved") from error
    except sa.exc.DBAPIError as error:
        raise BackupError(
            f"{server.place} refused a row of {path}: {server.reason(error)}. Nothing was moved"
        ) from error
    finally:
        if engine is not None:
            engine.dispose()


@contextmanager
def _unmarked_on_failure(server: PostgresServer) -> Iterator[None]:
    """Remove the marker that the move has written if it fails: the database is still the file."""
    marker = server.marker
    was_marked = marker is not None and marker.path.exists()
    try:
        yield
    except BaseException:
        if marker is not None and not was_marked:
            marker.path.unlink(missing_ok=True)
        raise


def _refuse_tables(server: PostgresServer, target: sa.Connection) -> None:
    if sa.inspect(target).get_table_names():
        raise TargetNotEmpty(
            f"the schema `{server.schema}` in {server.place} has tables already, and nothing is mixed with them. Name "
            f"an empty database, or, if nobody needs them: DROP SCHEMA {server.schema} CASCADE"
        )


def _copy(source: sqlite3.Connection, target: sa.Connection, path: Path) -> dict[str, int]:
    tables = sa.MetaData()
    tables.reflect(target)
    names = {name for (name,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    in_order = [table for table in tables.sorted_tables if table.name != VERSION_TABLE]
    unknown = {name for name in names if not name.startswith("sqlite_")} ^ set(tables.tables)
    if unknown:
        raise BackupError(f"{path} and this release differ in the tables {', '.join(sorted(unknown))}")
    counts = {table.name: _count(source, table) for table in in_order}
    for table in reversed(in_order):
        target.execute(table.delete())  # what the migrations put in themselves
    for table in in_order:
        _copy_table(source, target, table)
        copied = int(target.scalar(sa.select(sa.func.count()).select_from(table)) or 0)
        if copied != counts[table.name]:
            raise BackupError(
                f"{counts[table.name]} rows of {table.name} became {copied}. Nothing was moved; please report this"
            )
        _set_sequence(source, target, table)
    return counts


def _count(source: sqlite3.Connection, table: sa.Table) -> int:
    return int(source.execute(f'SELECT count(*) FROM "{table.name}"').fetchone()[0])  # noqa: S608 (our tables)


def _copy_table(source: sqlite3.Connection, target: sa.Connection, table: sa.Table) -> None:
    """Copy all rows in the order of their key, so that a row comes after those that it refers to."""
    columns = list(table.columns)
    listed = ", ".join(f'"{column.name}"' for column in columns)
    order = ", ".join(f'"{column.name}"' for column in table.primary_key)
    marks = ", ".join("%s" for _ in columns)
    insert = f'INSERT INTO "{table.name}" ({listed}) VALUES ({marks})'  # noqa: S608 (our tables)
    converts = [_convert(column.type) for column in columns]
    rows = source.execute(f'SELECT {listed} FROM "{table.name}" ORDER BY {order}')  # noqa: S608
    while batch := rows.fetchmany(BATCH):
        values = [
            tuple(None if value is None else convert(value) for convert, value in zip(converts, row, strict=True))
            for row in batch
        ]
        target.exec_driver_sql(insert, values)


def _convert(kind: sa.types.TypeEngine[Any]) -> Convert:
    """What makes a value as SQLite keeps it one of this type."""
    if isinstance(kind, sa.Boolean):
        return bool
    if isinstance(kind, sa.JSON):
        return _json
    if isinstance(kind, sa.Integer):
        return int
    if isinstance(kind, sa.Float):
        return float
    return _same


def _json(text: str) -> str:
    return text if _is_plain(text) else dump_json(json.loads(text))


def _is_plain(text: str) -> bool:
    return not any(escape in text for escape in ("\\u", "NaN", "Infinity"))


def _same(value: Any) -> Any:
    return value


def _set_sequence(source: sqlite3.Connection, target: sa.Connection, table: sa.Table) -> None:
    """Have the next row get a number that no row ever had, deleted ones included."""
    keys = list(table.primary_key)
    sequence = target.scalar(sa.select(sa.func.pg_get_serial_sequence(table.name, keys[0].name)))
    if len(keys) != 1 or sequence is None:
        return
    last = int(target.scalar(sa.select(sa.func.max(keys[0]))) or 0)
    known = source.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table.name,)).fetchone()
    last = max(last, int(known[0]) if known is not None else 0)
    if last:
        target.execute(sa.select(sa.func.setval(sequence, last)))
