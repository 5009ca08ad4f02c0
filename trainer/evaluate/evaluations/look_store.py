"""The looks at a project's held-out examples. They outlive runs and versions: deleting either resets no count.

A worker records its looks itself, in the trainer's database, before it decides. Evaluations that run side by side would
otherwise not see each other's, and each would have the whole level of a first look.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from pydantic import BaseModel, TypeAdapter, ValidationError

from adapters.database.sql import insert
from adapters.database.types import BigInt
from trainer.database import FILE, Database, metadata
from trainer.errors import InternalError
from trainer.evaluate.looks import KEY_BYTES, Look

LOOKS: Final = "looks.json"
"""In a run's directory, written by a worker of an earlier release: the looks of this run."""

SETUP: Final = " #"
"""Stands between a look's version and its setup in the column `digest`."""

looks: Final = sa.Table(
    "looks",
    metadata,
    sa.Column("number", BigInt, primary_key=True, autoincrement=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False, comment="the evaluation's id, or the job's"),
    sa.Column("digest", sa.Text, nullable=False, comment="of the version's weights"),
    sa.Column("examples", sa.LargeBinary, nullable=False, comment="the examples' keys, of 8 bytes each"),
    sa.Column("created_at", BigInt, nullable=False),
    sa.UniqueConstraint("run", "digest"),
    sa.Index("ix_looks_project", "project"),
    sqlite_autoincrement=True,
)
"""``digest`` holds `Look.version`, which begins with the digest, SETUP and `Look.setup`; earlier releases recorded the
version, or the digest, alone."""

look_examples: Final = sa.Table(
    "look_examples",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("example", sa.LargeBinary, primary_key=True, comment="its key"),
    sa.Column("sketch", sa.LargeBinary, nullable=False, comment="trainer.evaluate.sketches"),
    sqlite_with_rowid=False,
)
"""The sketch of each example of a project's looks, once, however many they are."""


class _EarlierLook(BaseModel):
    """A look as workers of earlier releases left it in a file."""

    digest: str
    examples: tuple[str, ...]


_LIST: Final = TypeAdapter(list[_EarlierLook])


class LookStore:
    """Records looks, and gives a version those that count for it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, project: str, run: str, taken: Sequence[Look]) -> list[Look]:
        """Record a run's looks, unless they are recorded, and return the project's up to them, oldest first.

        Recording takes the turn: of two runs that record at the same time, one sees the other's looks.

        Raises:
            DiskFull, InternalError: The database could not be used.
        """
        await self._database.run(lambda db: _add(db, project, run, taken))
        return await self._database.run(lambda db: _of_project(db, project, run))

    async def import_file(self, project: str, run: str, folder: Path) -> None:
        """Record the looks that a worker of an earlier release has left. Repeated calls change nothing."""
        taken = await asyncio.to_thread(_read, folder / LOOKS)
        if taken:
            await self._database.run(lambda db: _add(db, project, run, taken))


class RunLooks:
    """The looks of one run, recorded by its worker in the database of the trainer that started it.

    Args:
        directory: The run's directory.
        project: The run's project.
        run: The run's id.
        url: The server's database, in place of the file.
    """

    def __init__(self, directory: Path, project: str, run: str, url: str | None = None) -> None:
        self._path, self._url = directory.parent.parent / FILE, url
        self._project, self._run = project, run

    async def record(self, taken: Sequence[Look]) -> list[Look]:
        """See `LookStore.record`. Raises InternalError if the trainer's database is missing, too."""
        database = Database(self._path, self._url)
        if not database.backend.exists():  # SQLite would make an empty one, and every look would be a first one
            raise InternalError(f"the trainer's database {self._path} is missing; looks cannot be recorded")
        try:
            return await LookStore(database).record(self._project, self._run, taken)
        finally:
            await database.close()


def _read(path: Path) -> list[Look]:
    try:
        stored = _LIST.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return []
    return [Look(version=look.digest, examples=look.examples) for look in stored]


def _add(db: sa.Connection, project: str, run: str, taken: Sequence[Look]) -> None:
    for look in taken:
        digest = f"{look.version}{SETUP}{look.setup}" if look.setup else look.version
        known = sa.select(looks.c.number).where(looks.c.run == run, looks.c.digest == digest)
        if db.execute(known).first() is None:
            db.execute(
                sa.insert(looks).values(
                    project=project,
                    run=run,
                    digest=digest,
                    examples=bytes.fromhex("".join(look.examples)),
                    created_at=int(time.time()),
                )
            )
    sketches = {example: sketch for look in taken for example, sketch in look.sketches.items()}
    if sketches:
        rows = [
            {"project": project, "example": bytes.fromhex(example), "sketch": sketch}
            for example, sketch in sketches.items()
        ]
        db.execute(insert(db, look_examples).on_conflict_do_nothing(), rows)


def _of_project(db: sa.Connection, project: str, run: str) -> list[Look]:
    last = sa.select(sa.func.max(looks.c.number)).where(looks.c.run == run).scalar_subquery()
    rows = db.execute(
        sa.select(looks.c.digest, looks.c.examples)
        .where(looks.c.project == project, looks.c.number <= last)
        .order_by(looks.c.number)
    )
    stored = sa.select(look_examples.c.example, look_examples.c.sketch).where(look_examples.c.project == project)
    sketch_of = {bytes(example).hex(): bytes(sketch) for example, sketch in db.execute(stored)}
    return [_look(row.digest, _keys(row.examples), sketch_of) for row in rows]


def _look(digest: str, examples: tuple[str, ...], sketch_of: Mapping[str, bytes]) -> Look:
    version, _, setup = digest.partition(SETUP)
    sketches = {example: sketch_of[example] for example in examples if example in sketch_of}
    return Look(version=version, examples=examples, setup=setup, sketches=sketches)


def _keys(packed: bytes) -> tuple[str, ...]:
    return tuple(packed[start : start + KEY_BYTES].hex() for start in range(0, len(packed), KEY_BYTES))
