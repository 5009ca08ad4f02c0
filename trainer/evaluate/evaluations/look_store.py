"""The looks at a project's held-out examples. They outlive runs and versions: deleting either resets no count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from trainer.database import Database, metadata
from trainer.evaluate.looks import KEY_BYTES, Look

EARLIER_LOOKS: Final = "earlier_looks.json"
"""In a run's directory, written by the trainer: the project's looks so far, oldest first."""
LOOKS: Final = "looks.json"
"""In a run's directory, written by the worker: the looks of this run."""
MAX_LOOKS: Final = 5000
"""The newest that a worker gets: 100 MB with the longest held-out sets."""
LIST: Final = TypeAdapter(list[Look])

looks: Final = sa.Table(
    "looks",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False, comment="the evaluation's id, or the job's"),
    sa.Column("digest", sa.Text, nullable=False, comment="of the version's weights"),
    sa.Column("examples", sa.LargeBinary, nullable=False, comment="the examples' keys, of 8 bytes each"),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.UniqueConstraint("run", "digest"),
    sa.Index("ix_looks_project", "project"),
    sqlite_autoincrement=True,
)


class LookStore:
    """Gives a run the looks before it, and records those that it took."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def prepare(self, project: str, folder: Path) -> None:
        """Write the project's looks into a run's directory before its worker starts. Raises OSError."""
        earlier = await self._database.run(lambda db: _earlier(db, project))
        await asyncio.to_thread(_replace, folder / EARLIER_LOOKS, LIST.dump_json(earlier))

    async def take(self, project: str, run: str, folder: Path) -> None:
        """Record the looks that a run's worker has left. Repeated calls change nothing."""
        taken = await asyncio.to_thread(read_looks, folder / LOOKS)
        if taken:
            await self._database.run(lambda db: _add(db, project, run, taken))


def read_looks(path: Path) -> list[Look]:
    """The looks in a file; none if there is no such file, or nothing valid in it."""
    try:
        return LIST.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return []


def _replace(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


def _earlier(db: sa.Connection, project: str) -> list[Look]:
    newest = sa.select(looks).where(looks.c.project == project).order_by(looks.c.number.desc()).limit(MAX_LOOKS)
    rows = db.execute(newest).all()
    return [Look(digest=row.digest, examples=_keys(row.examples)) for row in reversed(rows)]


def _add(db: sa.Connection, project: str, run: str, taken: Sequence[Look]) -> None:
    for look in taken:
        known = sa.select(looks.c.number).where(looks.c.run == run, looks.c.digest == look.digest)
        if db.execute(known).first() is None:
            db.execute(
                sa.insert(looks).values(
                    project=project,
                    run=run,
                    digest=look.digest,
                    examples=bytes.fromhex("".join(look.examples)),
                    created_at=int(time.time()),
                )
            )


def _keys(packed: bytes) -> tuple[str, ...]:
    return tuple(packed[start : start + KEY_BYTES].hex() for start in range(0, len(packed), KEY_BYTES))
