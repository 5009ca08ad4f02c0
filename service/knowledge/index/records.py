"""The SQL of stores, their files and batches: units of work over one connection, run by ``service.database``.

That of indexing and searching is in ``service.knowledge.index.indexing_records``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa

from service.access.records import require_project
from service.errors import BadRequest, Conflict
from service.grounding.provider import Attribute, store_not_found
from service.knowledge.index.tables import store_batches, store_files, stores
from service.knowledge.types import (
    DEFAULT_CHUNKING,
    MAX_FILES,
    MAX_STORES,
    BatchInfo,
    Chunking,
    FileCounts,
    FileInfo,
    FilePage,
    FileStatus,
    NewStoreFile,
    StoreInfo,
    batch_not_found,
    file_not_in_store,
)

T = TypeVar("T")
Also: TypeAlias = Callable[[sa.Connection], None]
"""What a caller writes in the transaction of a change: the audit, holds on files."""


def nothing(db: sa.Connection) -> None:
    """Write nothing beside a change."""


def together(also: Also, change: Callable[[sa.Connection], T]) -> Callable[[sa.Connection], T]:
    """Both in one unit of work, ``also`` first."""

    def work(db: sa.Connection) -> T:
        also(db)
        return change(db)

    return work


def now() -> int:
    return int(time.time())


# stores


def new_generation() -> str:
    """Names a document's passages in a store's file; never used before."""
    return secrets.token_hex(12)


def create_store(
    db: sa.Connection,
    store_id: str,
    project: str,
    name: str | None,
    description: str | None,
    metadata: Mapping[str, str],
) -> StoreInfo:
    """Insert a store. Raises NotFound if the project does not exist, Conflict if it has MAX_STORES stores."""
    require_project(db, project)
    count = db.scalar(sa.select(sa.func.count()).select_from(stores).where(stores.c.project == project)) or 0
    if count >= MAX_STORES:
        raise Conflict(f"the project has {count} vector stores; the limit is {MAX_STORES}. Delete one first")
    created_at = now()
    db.execute(
        stores.insert().values(
            id=store_id,
            project=project,
            name=name,
            description=description,
            metadata=dict(metadata),
            created_at=created_at,
            last_active_at=created_at,
        )
    )
    return StoreInfo(store_id, project, name, description, dict(metadata), created_at, created_at, 0, FileCounts())


def find_stores(db: sa.Connection, project: str, store_id: str | None = None) -> list[StoreInfo]:
    """The project's stores, oldest first; only ``store_id`` if it is given."""
    where = stores.c.project == project
    if store_id is not None:
        where = sa.and_(where, stores.c.id == store_id)
    files = (
        sa.select(
            store_files.c.store,
            sa.func.sum(store_files.c.usage_bytes).label("bytes"),
            *(
                sa.func.sum(sa.case((store_files.c.status == status, 1), else_=0)).label(status)
                for status in FileCounts.__dataclass_fields__
            ),
        )
        .join(stores, stores.c.seq == store_files.c.store)
        .where(where)
        .group_by(store_files.c.store)
        .subquery()
    )
    rows = db.execute(
        sa.select(stores, files.c.bytes, *(files.c[status] for status in FileCounts.__dataclass_fields__))
        .outerjoin(files, files.c.store == stores.c.seq)
        .where(where)
        .order_by(stores.c.seq)
    ).mappings()
    return [
        StoreInfo(
            row["id"],
            row["project"],
            row["name"],
            row["description"],
            row["metadata"],
            row["created_at"],
            row["last_active_at"],
            row["bytes"] or 0,
            _counts(dict(row)),
        )
        for row in rows
    ]


def update_store(db: sa.Connection, store: StoreInfo) -> StoreInfo:
    """Write a store's name, description and metadata. Raises NotFound."""
    seq = demand_store(db, store.project, store.id)
    values = {"name": store.name, "description": store.description, "metadata": dict(store.metadata)}
    db.execute(stores.update().where(stores.c.seq == seq).values(values | {"last_active_at": now()}))
    return find_stores(db, store.project, store.id)[0]


def delete_store(db: sa.Connection, project: str, store_id: str) -> None:
    """Delete a store. Raises NotFound."""
    db.execute(stores.delete().where(stores.c.seq == demand_store(db, project, store_id)))


def touch(db: sa.Connection, used: Mapping[str, int]) -> None:
    """Record when stores were last used: Unix seconds by id."""
    for store_id, at in used.items():
        db.execute(stores.update().where(stores.c.id == store_id).values(last_active_at=at))


def demand_store(db: sa.Connection, project: str, store_id: str) -> int:
    """The row number of the project's store. Raises NotFound."""
    seq = db.scalar(sa.select(stores.c.seq).where(stores.c.project == project, stores.c.id == store_id))
    if seq is None:
        raise store_not_found(store_id)
    return int(seq)


def store_ids(db: sa.Connection) -> set[str]:
    """The ids of the stores of all projects."""
    return set(db.scalars(sa.select(stores.c.id)))


# files


def add_files(
    db: sa.Connection,
    project: str,
    store_id: str,
    drafts: Sequence[NewStoreFile],
    batch_id: str | None = None,
) -> tuple[list[FileInfo], BatchInfo | None]:
    """Add files to a store, or update those that it already has; queue those that must be indexed.

    Raises:
        NotFound: There is no such store.
        Conflict: It would have too many files.
    """
    store = demand_store(db, project, store_id)
    created_at = now()
    if batch_id is not None:
        db.execute(store_batches.insert().values(id=batch_id, store=store, created_at=created_at, cancelled=False))
    for draft in drafts:
        chunking = draft.chunking or DEFAULT_CHUNKING
        this_file = sa.and_(store_files.c.store == store, store_files.c.file_id == draft.file_id)
        existing = db.execute(sa.select(store_files).where(this_file)).mappings().one_or_none()
        chunking_columns = {"chunk_size": chunking.size, "chunk_overlap": chunking.overlap}
        values: dict[str, Any] = {
            "filename": draft.filename,
            "attributes": dict(draft.attributes),
            "batch_id": batch_id if batch_id is not None or existing is None else existing["batch_id"],
            **chunking_columns,
        }
        is_usable = existing is not None and existing["status"] in ("completed", "in_progress")
        if (
            existing is None
            or not is_usable
            or any(existing[name] != value for name, value in chunking_columns.items())
        ):
            values |= {"status": "in_progress", "wanted": new_generation(), "error_code": None, "error_message": None}
        if existing is None:
            initial_values = {
                "store": store,
                "file_id": draft.file_id,
                "created_at": created_at,
                "passages": 0,
                "usage_bytes": 0,
            }
            db.execute(store_files.insert().values(**values, **initial_values))
        else:
            db.execute(store_files.update().where(this_file).values(values))
    count = db.scalar(sa.select(sa.func.count()).select_from(store_files).where(store_files.c.store == store)) or 0
    if count > MAX_FILES:
        raise Conflict(f"the vector store would have {count} files; the limit is {MAX_FILES}")
    db.execute(stores.update().where(stores.c.seq == store).values(last_active_at=created_at))
    ids = [draft.file_id for draft in drafts]
    rows = db.execute(sa.select(store_files).where(store_files.c.store == store, store_files.c.file_id.in_(ids)))
    files = {row["file_id"]: _file(store_id, dict(row)) for row in rows.mappings()}
    batch = None if batch_id is None else find_batch(db, project, store_id, batch_id)
    return [files[file_id] for file_id in ids], batch


def find_file(db: sa.Connection, project: str, store_id: str, file_id: str) -> FileInfo | None:
    """The file; None if the store or the file does not exist."""
    row = _find_row(db, project, store_id, file_id)
    return None if row is None else _file(store_id, row)


def page(
    db: sa.Connection,
    project: str,
    store_id: str,
    *,
    after: str | None,
    before: str | None,
    limit: int,
    newest_first: bool,
    status: FileStatus | None,
    batch_id: str | None,
) -> FilePage:
    """A page of a store's files. Raises NotFound, BadRequest: as ``Stores.list_files``."""
    store = demand_store(db, project, store_id)
    if batch_id is not None and find_batch(db, project, store_id, batch_id) is None:
        raise batch_not_found(store_id, batch_id)
    column = store_files.c.seq
    query = sa.select(store_files).where(store_files.c.store == store)
    for param, cursor, forwards in (("after", after, True), ("before", before, False)):
        if cursor is not None:
            position = db.scalar(sa.select(column).where(store_files.c.store == store, store_files.c.file_id == cursor))
            if position is None:
                raise BadRequest(f"`{param}` is not the id of a file in this vector store", param=param)
            query = query.where(column < position if newest_first is forwards else column > position)
    if status is not None:
        query = query.where(store_files.c.status == status)
    if batch_id is not None:
        query = query.where(store_files.c.batch_id == batch_id)
    # before a mark alone: those next to it, not those at the list's beginning
    backwards = before is not None and after is None
    order = column.desc() if newest_first is not backwards else column.asc()
    rows = db.execute(query.order_by(order).limit(limit + 1)).mappings().all()
    files = [_file(store_id, dict(row)) for row in rows[:limit]]
    return FilePage(files[::-1] if backwards else files, len(rows) > limit)


def set_attributes(
    db: sa.Connection, project: str, store_id: str, file_id: str, attributes: Mapping[str, Attribute]
) -> FileInfo:
    """Replace a file's attributes. Raises NotFound."""
    row = demand_file(db, project, store_id, file_id)
    db.execute(store_files.update().where(store_files.c.seq == row["seq"]).values(attributes=dict(attributes)))
    return _file(store_id, {**row, "attributes": dict(attributes)})


def remove_file(db: sa.Connection, project: str, store_id: str, file_id: str) -> list[str]:
    """Remove a file from a store; returns the generations whose passages can be deleted. Raises NotFound."""
    row = demand_file(db, project, store_id, file_id)
    db.execute(store_files.delete().where(store_files.c.seq == row["seq"]))
    return [generation for generation in (row["generation"], row["wanted"]) if generation]


def demand_file(db: sa.Connection, project: str, store_id: str, file_id: str) -> dict[str, Any]:
    """The row of a file in a store. Raises NotFound."""
    demand_store(db, project, store_id)
    row = _find_row(db, project, store_id, file_id)
    if row is None:
        raise file_not_in_store(store_id, file_id)
    return row


def contents(db: sa.Connection) -> list[tuple[str, str]]:
    """The (store id, file id) of all files in all stores."""
    joined = store_files.join(stores, stores.c.seq == store_files.c.store)
    return [(row[0], row[1]) for row in db.execute(sa.select(stores.c.id, store_files.c.file_id).select_from(joined))]


# batches


def find_batch(db: sa.Connection, project: str, store_id: str, batch_id: str) -> BatchInfo | None:
    """The batch; None if it does not exist."""
    row = db.execute(
        sa.select(store_batches)
        .join(stores, stores.c.seq == store_batches.c.store)
        .where(stores.c.project == project, stores.c.id == store_id, store_batches.c.id == batch_id)
    ).one_or_none()
    if row is None:
        return None
    counts = sa.select(store_files.c.status, sa.func.count()).where(store_files.c.batch_id == batch_id)
    by_status = {row[0]: row[1] for row in db.execute(counts.group_by(store_files.c.status))}
    return BatchInfo(row.id, store_id, row.created_at, row.cancelled, FileCounts(**by_status))


def cancel_batch(db: sa.Connection, project: str, store_id: str, batch_id: str) -> tuple[BatchInfo, list[str]]:
    """Cancel a batch; returns it and the generations whose passages can be deleted. Raises NotFound."""
    store = demand_store(db, project, store_id)
    if find_batch(db, project, store_id, batch_id) is None:
        raise batch_not_found(store_id, batch_id)
    db.execute(store_batches.update().where(store_batches.c.id == batch_id).values(cancelled=True))
    in_progress = sa.and_(
        store_files.c.store == store, store_files.c.batch_id == batch_id, store_files.c.status == "in_progress"
    )
    garbage = list(db.scalars(sa.select(store_files.c.wanted).where(in_progress, store_files.c.wanted.is_not(None))))
    db.execute(store_files.update().where(in_progress).values(status="cancelled", wanted=None))
    batch = find_batch(db, project, store_id, batch_id)
    if batch is None:
        raise batch_not_found(store_id, batch_id)
    return batch, garbage


def _find_row(db: sa.Connection, project: str, store_id: str, file_id: str) -> dict[str, Any] | None:
    row = (
        db.execute(
            sa.select(store_files)
            .join(stores, stores.c.seq == store_files.c.store)
            .where(stores.c.project == project, stores.c.id == store_id, store_files.c.file_id == file_id)
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else dict(row)


def _file(store_id: str, row: Mapping[str, Any]) -> FileInfo:
    return FileInfo(
        file_id=row["file_id"],
        store_id=store_id,
        filename=row["filename"],
        created_at=row["created_at"],
        status=row["status"],
        error=(row["error_code"], row["error_message"]) if row["error_code"] else None,
        usage_bytes=row["usage_bytes"],
        attributes=row["attributes"],
        chunking=Chunking(row["chunk_size"], row["chunk_overlap"]),
        batch_id=row["batch_id"],
        passages=row["passages"],
        done=row["passages"],
    )


def _counts(row: Mapping[str, Any]) -> FileCounts:
    return FileCounts(**{status: row[status] or 0 for status in FileCounts.__dataclass_fields__})
