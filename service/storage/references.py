"""What a copy of the databases names on the disk, and what it must not contradict."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from adapters.database.backend import DatabaseFault
from adapters.database.postgresql import PostgresServer
from service.access.tables import keys
from service.files.tables import files
from service.knowledge.index.tables import store_files, stores
from service.registry import records
from service.storage.archive import room_on
from service.storage.errors import BackupError, NoRoom

COPY_PAGES: Final = 1024
"""Pages of SQLite that are copied between two calls of the progress."""
BUSY_S: Final = 30.0
OVER: Final = ("succeeded", "failed", "cancelled")
"""OpenAI's statuses of a run that has ended."""
BATCH_OVER: Final = ("completed", "failed", "expired", "cancelled")
"""… and of a batch."""


@dataclass(frozen=True, slots=True)
class References:
    """What the gateway's database names.

    Attributes:
        digests: Of adapters that a version has.
        files: SHA-256 by the id of each file whose bytes are kept.
        generations: Of each vector store, the documents that are searched.
        live_keys: Ids of the keys that are not revoked.
        batches: Ids of the batches that have not ended.
    """

    digests: frozenset[str]
    files: Mapping[str, str]
    generations: Mapping[str, frozenset[str]]
    live_keys: frozenset[str]
    batches: frozenset[str] = frozenset()


def snapshot(source: Path, target: Path, moved: Callable[[int], None]) -> None:
    """Copy a SQLite database as it is at one moment, also while others write to it; none of them waits.

    Raises:
        BackupError: It is damaged, or no database.
        NoRoom: There is no room for the copy.
    """
    target.unlink(missing_ok=True)
    address = f"file:{quote(str(source.absolute()))}?mode=rw"  # a log that a killed process left is read, too
    try:
        with closing(sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_S)) as database:
            page_bytes = int(database.execute("PRAGMA page_size").fetchone()[0])
            copied = 0

            def advance(_status: int, remaining: int, total: int) -> None:
                nonlocal copied
                moved((total - remaining - copied) * page_bytes)
                copied = total - remaining

            # one transaction around all steps: or each write of another process would start the copy anew
            database.execute("BEGIN")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with room_on(target), closing(sqlite3.connect(target, isolation_level=None)) as copy:
                database.backup(copy, pages=COPY_PAGES, progress=advance)
                problem = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise NoRoom(f"the disk that holds {target.parent} is full") from error
        raise BackupError(f"cannot copy {source}: {error}") from error
    if problem != "ok":
        advice = "Restore the last backup, or repair it with `sqlite3 .recover`"
        raise BackupError(f"{source} is damaged: {problem}. {advice}")
    target.chmod(0o600)


def schema_of(path: Path) -> str | None:
    """The revision that Alembic has recorded in a database; None if it has not."""
    with _reading(path) as db:
        if not sa.inspect(db).has_table("alembic_version"):
            return None
        revision = db.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return None if revision is None else str(revision)


def references(database: Path | PostgresServer) -> References:
    """What the gateway's database, or a copy of it, names. It may be an older release's."""
    with _reading(database) as db:
        tables = set(sa.inspect(db).get_table_names())
        digests = records.digests_in_use(db) if "versions" in tables else set()
        kept: dict[str, str] = {}
        if files.name in tables:
            rows = db.execute(sa.select(files.c.id, files.c.sha256).where(files.c.gone_at.is_(None)))
            kept = {row.id: row.sha256 for row in rows}
        generations: dict[str, frozenset[str]] = {}
        if store_files.name in tables:
            generations = {store_id: frozenset() for store_id in db.scalars(sa.select(stores.c.id))}
            joined = store_files.join(stores, stores.c.seq == store_files.c.store)
            columns = sa.select(stores.c.id, store_files.c.generation).select_from(joined)
            for store_id, generation in db.execute(columns.where(store_files.c.generation.is_not(None))):
                generations[store_id] |= {generation}
        alive: set[str] = set()
        if keys.name in tables:
            alive = set(db.scalars(sa.select(keys.c.id).where(keys.c.revoked_at.is_(None))))
        unfinished: set[str] = set()
        if "batches" in tables:
            batches = sa.table("batches", sa.column("id"), sa.column("status"))
            unfinished = set(db.scalars(sa.select(batches.c.id).where(batches.c.status.not_in(BATCH_OVER))))
        return References(frozenset(digests), kept, generations, frozenset(alive), frozenset(unfinished))


def keys_in_use(path: Path) -> set[str]:
    """Ids of the keys with which the runs of a trainer's database go on: of those that have not ended."""
    with _reading(path) as db:
        if not sa.inspect(db).has_table("runs"):
            return set()  # a trainer before the first migration
        runs = sa.table("runs", sa.column("run_key_id"), sa.column("status"))
        return set(db.scalars(sa.select(runs.c.run_key_id).where(runs.c.status.not_in(OVER))))


def run_statuses(database: Path | PostgresServer) -> dict[str, bool] | None:
    """Whether each run of a trainer's database has ended, by its id; None if it is an older trainer's."""
    with _reading(database) as db:
        if not sa.inspect(db).has_table("runs"):
            return None
        runs = sa.table("runs", sa.column("id"), sa.column("status"))
        return {row.id: row.status in OVER for row in db.execute(sa.select(runs.c.id, runs.c.status))}


def last_look(path: Path) -> int:
    """The number of the newest look at held-out examples in a trainer's database; 0 if there is none."""
    with _reading(path) as db:
        if not sa.inspect(db).has_table("looks"):
            return 0  # a trainer before the third migration
        return int(db.exec_driver_sql("SELECT max(number) FROM looks").scalar() or 0)


def stored_generations(path: Path) -> set[str]:
    """The documents in a copy of a store's passage file."""
    with _reading(path) as db:
        if not sa.inspect(db).has_table("documents"):
            return set()
        return {row[0] for row in db.exec_driver_sql("SELECT generation FROM documents")}


def reindex(path: Path, missing: Mapping[str, frozenset[str]], new_generation: Callable[[], str]) -> int:
    """Have documents indexed again whose passages were replaced or removed while they were copied.

    Args:
        path: The copy of the gateway's database.
        missing: Generations by the store's id.
        new_generation: Gives a name for each.

    Returns:
        How many documents that is.
    """
    lost = {generation for generations in missing.values() for generation in generations}
    if not lost:
        return 0
    with _connected(path) as db, db.begin():
        rows = list(db.scalars(sa.select(store_files.c.seq).where(store_files.c.generation.in_(sorted(lost)))))
        for seq in rows:
            values = {"status": "in_progress", "generation": None, "wanted": new_generation()}
            db.execute(store_files.update().where(store_files.c.seq == seq).values(values))
    return len(rows)


@contextmanager
def _connected(path: Path) -> Iterator[sa.Connection]:
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=NullPool)
    try:
        with engine.connect() as db:
            yield db
    finally:
        engine.dispose()


@contextmanager
def _reading(database: Path | PostgresServer) -> Iterator[sa.Connection]:
    try:
        with database.asking() if isinstance(database, PostgresServer) else _connected(database) as db:
            yield db
    except DatabaseFault as error:
        raise BackupError(str(error)) from error
    except sa.exc.DatabaseError as error:
        raise BackupError(f"cannot read {database}: {error.orig}") from error
