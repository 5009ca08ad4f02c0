"""The SQL of passages: one SQLite file a store, apart from the metadata database.

A file holds the passages of one store and of no other, so that no query, however wrong, reaches another project's. What
counts is said by the metadata database: a document here is found once its ``generation`` stands there, so that one
half written when the process was killed is nothing but garbage. Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import orjson

from service.errors import DiskFull, Internal
from service.grounding.provider import Attribute
from service.knowledge.index.part import PlacedSegment
from service.knowledge.segment import FLOAT_BYTES, Segment
from service.knowledge.text import PassageText

T = TypeVar("T")
SCHEMA_VERSION: Final = 2
"""1 had no `turns`."""
MAX_SEGMENT: Final = 1024
"""Most passages of a segment; a passage's rowid is its segment's number times this, and its position."""
BUSY_TIMEOUT_MS: Final = 10_000
VACUUM_PAGES: Final = 20_000
"""Free pages given back to the file system after a deletion, at most."""
_SCHEMA: Final = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE documents (number INTEGER PRIMARY KEY AUTOINCREMENT, generation TEXT NOT NULL UNIQUE);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents (number),
    size INTEGER NOT NULL, vectors BLOB NOT NULL, offsets BLOB NOT NULL, terms BLOB NOT NULL, counts BLOB NOT NULL);
CREATE INDEX segments_document ON segments (document);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL,
    repeats INTEGER NOT NULL, attributes BLOB, turns BLOB);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_UPGRADE: Final = f"""
BEGIN IMMEDIATE;
ALTER TABLE passages ADD COLUMN turns BLOB;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_TEXT_COLUMNS: Final = "p.number, p.heading, p.text, p.repeats, p.attributes, p.turns"


@dataclass(frozen=True, slots=True)
class LoadedPassages:
    """The requested documents of a passage file: numbers by generation, segments, and attributes of single rows."""

    numbers: Mapping[str, int]
    segments: Sequence[PlacedSegment]
    own: Mapping[int, Mapping[tuple[int, int], Mapping[str, Attribute]]]


class PassageFile:
    """The passages of one store. One thread may write while another reads.

    Args:
        path: Made where there is none.

    Raises:
        Internal: It is no such file.
        DiskFull: There is no room to make it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _errors(path):
            self._writer = _connect(path)
            self._reader = _connect(path)
        self._writing = threading.Lock()
        self._reading = threading.Lock()

    def close(self) -> None:
        """Close it; a second call does nothing."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def begin(self, generation: str) -> int:
        """Create an empty document, replacing one of the same generation; returns its number. Durable."""

        def work(db: sqlite3.Connection) -> int:
            _delete(db, [generation])
            row = db.execute("INSERT INTO documents (generation) VALUES (?) RETURNING number", (generation,)).fetchone()
            return int(row[0])

        return self._write(work)

    def add(self, document: int, segment: Segment, passages: Sequence[PassageText]) -> int:
        """Append a segment and the texts of its passages; returns the segment's number. Durable."""

        def work(db: sqlite3.Connection) -> int:
            row = db.execute(
                "INSERT INTO segments (document, size, vectors, offsets, terms, counts) VALUES (?, ?, ?, ?, ?, ?) "
                "RETURNING number",
                (document, segment.rows, *segment.dump()),
            ).fetchone()
            number = int(row[0])
            db.executemany(
                "INSERT INTO passages (id, number, heading, text, repeats, attributes, turns) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        number * MAX_SEGMENT + position,
                        passage.number,
                        passage.heading,
                        passage.text,
                        passage.repeats,
                        orjson.dumps(dict(passage.attributes)) if passage.attributes else None,
                        orjson.dumps(passage.turns) if passage.turns else None,
                    )
                    for position, passage in enumerate(passages)
                ],
            )
            return number

        return self._write(work)

    def delete(self, generations: Collection[str]) -> None:
        """Delete documents, and return some of the space to the file system."""
        if not generations:
            return
        self._write(lambda db: _delete(db, generations))
        with self._writing, _errors(self.path):
            self._writer.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()

    def generations(self) -> set[str]:
        """The generations of all documents, finished or not."""
        return self._read(lambda db: {row[0] for row in db.execute("SELECT generation FROM documents")})

    def dimensions(self, generation: str) -> int | None:
        """How many dimensions the vectors of a document have; None: it has none, or does not exist."""

        def work(db: sqlite3.Connection) -> int | None:
            row = db.execute(
                "SELECT length(s.vectors) / s.size FROM documents d JOIN segments s ON s.document = d.number "
                "WHERE d.generation = ? LIMIT 1",
                (generation,),
            ).fetchone()
            return None if row is None else int(row[0]) // FLOAT_BYTES

        return self._read(work)

    def load(self, generations: Collection[str]) -> LoadedPassages:
        """Load the arrays of documents, in the order in which they were written."""

        def work(db: sqlite3.Connection) -> LoadedPassages:
            rows = db.execute("SELECT generation, number FROM documents ORDER BY number")
            numbers = {generation: int(number) for generation, number in rows if generation in generations}
            return self._loaded(db, numbers)

        return self._read(work)

    def load_one(self, generation: str) -> LoadedPassages:
        """Load the arrays of one document."""

        def work(db: sqlite3.Connection) -> LoadedPassages:
            rows = db.execute("SELECT generation, number FROM documents WHERE generation = ?", (generation,))
            return self._loaded(db, {generation: int(number) for generation, number in rows})

        return self._read(work)

    def _loaded(self, db: sqlite3.Connection, numbers: Mapping[str, int]) -> LoadedPassages:
        documents = set(numbers.values())
        where = "WHERE document = ?" if len(documents) == 1 else ""
        parameters = tuple(documents) if where else ()
        columns = "number, document, size, vectors, offsets, terms, counts"
        placed = [
            PlacedSegment(Segment.load((vectors, offsets, terms, counts), size), number, document)
            for number, document, size, vectors, offsets, terms, counts in db.execute(
                f"SELECT {columns} FROM segments {where} ORDER BY number",  # noqa: S608 - both parts are ours
                parameters,
            )
            if document in documents
        ]
        own: dict[int, dict[tuple[int, int], Mapping[str, Attribute]]] = {}
        joined = (
            "SELECT s.document, p.id, p.attributes FROM segments s "  # noqa: S608 - all parts are ours
            "CROSS JOIN passages p ON p.id >= s.number * ? AND p.id < (s.number + 1) * ? AND p.attributes IS NOT NULL "
            f"{where}"
        )
        rows = db.execute(joined, (MAX_SEGMENT, MAX_SEGMENT, *parameters)) if placed else ()
        for document, number, packed in rows:
            if document in documents:
                own.setdefault(document, {})[divmod(number, MAX_SEGMENT)] = orjson.loads(packed)
        return LoadedPassages(numbers, placed, own)

    def texts(self, places: Sequence[tuple[int, int]]) -> list[PassageText | None]:
        """The passages at these (segment, position), in that order; None for one that was deleted."""

        def work(db: sqlite3.Connection) -> list[PassageText | None]:
            rows = (
                db.execute(
                    f"SELECT {_TEXT_COLUMNS} FROM passages p WHERE p.id = ?",  # noqa: S608 - the columns are ours
                    (segment * MAX_SEGMENT + position,),
                ).fetchone()
                for segment, position in places
            )
            return [None if row is None else _passage(*row) for row in rows]

        return self._read(work)

    def document(self, generation: str) -> list[PassageText]:
        """All passages of a document, in order; empty if it does not exist."""

        def work(db: sqlite3.Connection) -> list[PassageText]:
            rows = db.execute(
                f"SELECT {_TEXT_COLUMNS} FROM documents d "  # noqa: S608 - the columns are ours
                "JOIN segments s ON s.document = d.number "
                "JOIN passages p ON p.id >= s.number * ? AND p.id < (s.number + 1) * ? "
                "WHERE d.generation = ? ORDER BY p.id",
                (MAX_SEGMENT, MAX_SEGMENT, generation),
            )
            return [_passage(*row) for row in rows]

        return self._read(work)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._writing, _errors(self.path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            return result

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading, _errors(self.path):
            return work(self._reader)


def remove(path: Path) -> None:
    """Delete a closed passage file and SQLite's files beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            db.executescript(_SCHEMA)
        elif version == 1:
            db.executescript(_UPGRADE)
        elif version != SCHEMA_VERSION:
            raise Internal(
                f"{path.name} was written by another version of Hatrack (schema {version}, not {SCHEMA_VERSION})"
            )
        db.execute("PRAGMA synchronous = FULL")  # a file that is `completed` survives a power cut
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def _delete(db: sqlite3.Connection, generations: Collection[str]) -> None:
    for generation in generations:
        row = db.execute("SELECT number FROM documents WHERE generation = ?", (generation,)).fetchone()
        if row is None:
            continue
        with closing(db.execute("SELECT number FROM segments WHERE document = ?", row)) as segments:
            for (number,) in segments.fetchall():
                db.execute(
                    "DELETE FROM passages WHERE id >= ? AND id < ?", (number * MAX_SEGMENT, (number + 1) * MAX_SEGMENT)
                )
        db.execute("DELETE FROM segments WHERE document = ?", row)
        db.execute("DELETE FROM documents WHERE number = ?", row)


def _passage(
    number: int, heading: str, text: str, repeats: int, attributes: bytes | None, turns: bytes | None
) -> PassageText:
    own = orjson.loads(attributes) if attributes else None
    return PassageText(number, heading, text, repeats, own, orjson.loads(turns) if turns else None)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFull(f"the disk that holds {path.parent.name} is full; nothing was changed") from error
        raise Internal(f"cannot read or write the passages of a vector store ({type(error).__name__})") from error
