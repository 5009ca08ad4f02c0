"""The SQL of indexing and searching: pending files, their results, and searchable files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from service.grounding.provider import Attribute
from service.knowledge.index.tables import store_files, stores
from service.knowledge.types import Chunking

SERVER_ERROR: Final = "server_error"
"""OpenAI's code for an error that the document did not cause."""


@dataclass(frozen=True, slots=True)
class SearchableFile:
    """A file whose passages are searchable; ``generation`` names them in the store's passage file."""

    file_id: str
    filename: str
    attributes: Mapping[str, Attribute]
    generation: str


@dataclass(frozen=True, slots=True)
class IndexingTask:
    """A file to be indexed as the document ``generation``."""

    store_id: str
    project: str
    file_id: str
    filename: str
    chunking: Chunking
    generation: str


@dataclass(frozen=True, slots=True)
class IndexingResult:
    """The result of an indexing task; ``error`` is a code and a message."""

    task: IndexingTask
    passages: int
    usage_bytes: int
    model: str
    error: tuple[str, str] | None = None

    @property
    def keeps_previous(self) -> bool:
        """Whether the file's previous passages stay searchable: indexing failed, but not because of the document."""
        return self.error is not None and self.error[0] == SERVER_ERROR


def searchable_files(db: sa.Connection, store_id: str, model: str) -> tuple[list[SearchableFile], set[str]]:
    """A store's searchable files, and the generations that are still to be indexed.

    Args:
        model: The embedding model; files that another one embedded are left out.
    """
    files = store_files.join(stores, stores.c.seq == store_files.c.store)
    rows = db.execute(
        sa.select(
            store_files.c.file_id,
            store_files.c.filename,
            store_files.c.attributes,
            store_files.c.generation,
            store_files.c.wanted,
            store_files.c.model,
        )
        .select_from(files)
        .where(stores.c.id == store_id)
    ).all()
    candidates = [
        SearchableFile(row.file_id, row.filename, row.attributes, row.generation) for row in rows if row.model == model
    ]
    return [file for file in candidates if file.generation], {row.wanted for row in rows if row.wanted}


def other_document(db: sa.Connection, task: IndexingTask, model: str) -> str | None:
    """The generation of a searchable document of another file in the task's store; None if there is none."""
    files = store_files.join(stores, stores.c.seq == store_files.c.store)
    found: str | None = db.scalar(
        sa.select(store_files.c.generation)
        .select_from(files)
        .where(
            stores.c.id == task.store_id,
            store_files.c.file_id != task.file_id,
            store_files.c.model == model,
            store_files.c.generation.is_not(None),
            store_files.c.passages > 0,
        )
        .limit(1)
    )
    return found


def requeue_outdated(db: sa.Connection, model: str, generation: Callable[[], str]) -> int:
    """Queue all files for indexing whose vectors another model made; returns how many.

    Args:
        generation: Returns a new generation.
    """
    return _requeue(db, sa.and_(store_files.c.status == "completed", store_files.c.model != model), generation)


def requeue_failed(db: sa.Connection, generation: Callable[[], str]) -> int:
    """Queue all files for indexing that failed with SERVER_ERROR; returns how many.

    Args:
        generation: Returns a new generation.
    """
    return _requeue(db, sa.and_(store_files.c.status == "failed", store_files.c.error_code == SERVER_ERROR), generation)


def _requeue(db: sa.Connection, which: sa.ColumnElement[bool], generation: Callable[[], str]) -> int:
    rows = list(db.scalars(sa.select(store_files.c.seq).where(which)))
    for seq in rows:
        db.execute(
            store_files.update().where(store_files.c.seq == seq).values(status="in_progress", wanted=generation())
        )
    return len(rows)


def next_task(db: sa.Connection, last_project: str | None, later: Sequence[str] = ()) -> IndexingTask | None:
    """The task that has waited longest, of another project than ``last_project`` if possible; None if there is none.

    Args:
        later: Generations to try after all others, in this order.
    """
    generation = store_files.c.wanted
    turn = (
        sa.case({postponed: at for at, postponed in enumerate(later, 1)}, value=generation, else_=0)
        if later
        else sa.literal(0)
    )
    row = (
        db.execute(
            sa.select(store_files, stores.c.id.label("store_id"), stores.c.project)
            .join(stores, stores.c.seq == store_files.c.store)
            .where(store_files.c.status == "in_progress", store_files.c.wanted.is_not(None))
            .order_by(turn, stores.c.project == last_project, store_files.c.seq)
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    return IndexingTask(
        row["store_id"], row["project"], row["file_id"], row["filename"],
        Chunking(row["chunk_size"], row["chunk_overlap"]), row["wanted"],
    )  # fmt: skip


def record_delay(db: sa.Connection, task: IndexingTask, reason: str) -> None:
    """Record why a task is delayed; its file stays `in_progress`."""
    mine = store_files.c.wanted == task.generation
    db.execute(store_files.update().where(mine).values(error_code=SERVER_ERROR, error_message=f"waiting: {reason}"))


def record_result(db: sa.Connection, result: IndexingResult) -> None:
    """Record the result of a task, if its file is still to be indexed."""
    if result.error is None:
        values: dict[str, Any] = {
            "status": "completed",
            "generation": result.task.generation,
            "passages": result.passages,
            "usage_bytes": result.usage_bytes,
            "model": result.model,
            "error_code": None,
            "error_message": None,
        }
    else:
        values = {"status": "failed", "error_code": result.error[0], "error_message": result.error[1]}
        if not result.keeps_previous:
            values |= {"generation": None, "passages": 0, "usage_bytes": 0}
    mine = store_files.c.wanted == result.task.generation
    db.execute(store_files.update().where(mine).values(wanted=None, **values))


def pending_file(db: sa.Connection, task: IndexingTask) -> tuple[SearchableFile, str | None] | None:
    """The file as it will be once indexed, and the generation that is searchable until then.

    None if the file was removed or cancelled meanwhile.
    """
    row = db.execute(sa.select(store_files).where(store_files.c.wanted == task.generation)).one_or_none()
    if row is None:
        return None
    return SearchableFile(row.file_id, row.filename, row.attributes, task.generation), row.generation


def project_usage_bytes(db: sa.Connection, project: str, but: str | None = None) -> int:
    """Size of the passages of a project's stores, in bytes, without the document ``but`` that is being written."""
    joined = store_files.join(stores, stores.c.seq == store_files.c.store)
    total = sa.select(sa.func.sum(store_files.c.usage_bytes)).select_from(joined).where(stores.c.project == project)
    if but is not None:
        total = total.where(store_files.c.wanted.is_distinct_from(but))
    return int(db.scalar(total) or 0)


def usage_bytes(db: sa.Connection, store_id: str, but: str) -> int:
    """Size of a store's passages, in bytes, without those of the file ``but``."""
    joined = store_files.join(stores, stores.c.seq == store_files.c.store)
    total = sa.select(sa.func.sum(store_files.c.usage_bytes)).select_from(joined)
    return int(db.scalar(total.where(stores.c.id == store_id, store_files.c.file_id != but)) or 0)
