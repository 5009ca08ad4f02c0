"""The SQL of files: units of work over one connection, run by ``service.database`` in a transaction of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from service.access.caller import Caller
from service.errors import TooLarge
from service.files.accessible import accessible, deletable
from service.files.purposes import Purpose
from service.files.tables import file_holds, files


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as it is stored; times in Unix seconds."""

    id: str
    project: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: int
    expires_at: int | None
    deleted_at: int | None
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be inserted."""

    id: str
    project: str
    filename: str
    purpose: Purpose
    bytes: int
    sha256: str
    expires_after_s: int | None
    key_id: str | None = None


_COLUMNS = [files.c[name] for name in FileRow.__dataclass_fields__]


def now() -> int:
    return int(time.time())


def is_listed(at: int) -> sa.ColumnElement[bool]:
    """SQL condition on ``files``: neither deleted nor expired at the time ``at``, Unix seconds."""
    return sa.and_(files.c.deleted_at.is_(None), sa.or_(files.c.expires_at.is_(None), files.c.expires_at > at))


def find(db: sa.Connection, caller: Caller, file_id: str) -> FileRow | None:
    """The file if it is listed and the caller may access it, else None."""
    return _fetch(db, sa.and_(_has_id(caller, file_id), is_listed(now()), accessible(caller)))


def may_delete(db: sa.Connection, caller: Caller, file_id: str) -> bool:
    """Whether the caller may delete a file that it may access."""
    return db.scalar(sa.select(files.c.id).where(_has_id(caller, file_id), deletable(caller))) is not None


def find_held(db: sa.Connection, caller: Caller, file_id: str, holder: str, kind: str = "key") -> FileRow | None:
    """The file if the caller may access it, or if ``holder``, of this ``kind``, holds it; else None.

    The caller must be one that may use the holder.
    """
    held = sa.exists().where(
        file_holds.c.file_id == files.c.id, file_holds.c.kind == kind, file_holds.c.holder == holder
    )
    reachable = sa.or_(sa.and_(is_listed(now()), accessible(caller)), sa.and_(held, files.c.gone_at.is_(None)))
    return _fetch(db, sa.and_(_has_id(caller, file_id), reachable))


def find_held_by_version(
    db: sa.Connection, project: str, file_id: str, may_use: Callable[[str], bool]
) -> FileRow | None:
    """The project's file if a version of an adapter that ``may_use`` allows holds it, else None."""
    holders = sa.select(file_holds.c.holder).where(file_holds.c.file_id == file_id, file_holds.c.kind == "version")
    if not any(may_use(holder.partition("@")[0]) for holder in db.scalars(holders)):
        return None
    return _fetch(db, sa.and_(files.c.project == project, files.c.id == file_id, files.c.gone_at.is_(None)))


def _has_id(caller: Caller, file_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(files.c.project == caller.project, files.c.id == file_id)


def _fetch(db: sa.Connection, where: sa.ColumnElement[bool]) -> FileRow | None:
    row = db.execute(sa.select(*_COLUMNS).where(where)).one_or_none()
    return None if row is None else _file(row)


def page(
    db: sa.Connection, caller: Caller, purposes: Collection[str], *, after: str | None, limit: int, newest_first: bool
) -> list[FileRow] | None:
    """Up to ``limit`` listed files that the caller may access.

    None where ``after`` is no id of such a file; one that was deleted still marks its place.
    """
    visible = sa.and_(files.c.project == caller.project, files.c.purpose.in_(sorted(purposes)), accessible(caller))
    query = sa.select(*_COLUMNS).where(visible, is_listed(now())).limit(limit)
    query = query.order_by(files.c.seq.desc() if newest_first else files.c.seq)
    if after is not None:
        cursor = db.scalar(sa.select(files.c.seq).where(visible, files.c.id == after))
        if cursor is None:
            return None
        query = query.where(files.c.seq < cursor if newest_first else files.c.seq > cursor)
    return [_file(row) for row in db.execute(query)]


def stored_bytes(db: sa.Connection, project: str) -> int:
    """Total size of the project's files, including deleted ones that are still held."""
    total = db.scalar(
        sa.select(sa.func.sum(files.c.bytes)).where(files.c.project == project, files.c.gone_at.is_(None))
    )
    return int(total or 0)


def demand_room(
    db: sa.Connection, project: str, size: int, max_bytes: int, unlisted: int = 0, *, param: str | None = "file"
) -> None:
    """Raise TooLarge if ``size`` more bytes would exceed the project's ``max_bytes``.

    Args:
        unlisted: What uploads in progress may take, and the results of batches that run have taken.
    """
    used = stored_bytes(db, project)
    if used + unlisted + size > max_bytes:
        others = f", and uploads and batches in progress take {unlisted}" if unlisted else ""
        advice = "Wait for them, or delete files first" if unlisted else "Delete files first"
        raise TooLarge(
            f"the project's files take {used} bytes{others}; {size} more would exceed the limit of {max_bytes} "
            f"(HATRACK_MAX_FILES_GIB). {advice}",
            param=param,
            code="project_storage_full",
        )


def add(db: sa.Connection, new_file: NewFile) -> FileRow:
    """Insert a file, which lists it."""
    created_at = now()
    row = FileRow(
        id=new_file.id,
        project=new_file.project,
        filename=new_file.filename,
        purpose=new_file.purpose.value,
        bytes=new_file.bytes,
        sha256=new_file.sha256,
        created_at=created_at,
        expires_at=None if new_file.expires_after_s is None else created_at + new_file.expires_after_s,
        deleted_at=None,
        key_id=new_file.key_id,
    )
    db.execute(files.insert().values({name: getattr(row, name) for name in FileRow.__dataclass_fields__}))
    return row


def saved(db: sa.Connection, file_id: str) -> FileRow | None:
    """A file whose bytes are stored, whoever asks."""
    return _fetch(db, sa.and_(files.c.id == file_id, files.c.gone_at.is_(None)))


def delete(db: sa.Connection, file_id: str) -> None:
    """Remove a file from the list; its bytes are kept while something holds it."""
    db.execute(files.update().where(files.c.id == file_id).values(deleted_at=now()))


def stored_ids(db: sa.Connection) -> set[str]:
    """The ids of all files whose bytes are stored."""
    return set(db.scalars(sa.select(files.c.id).where(files.c.gone_at.is_(None))))


def sha256_of(db: sa.Connection, file_id: str) -> str | None:
    """The hex SHA-256 of a file whose bytes are stored; None if there is no such file."""
    return db.scalar(sa.select(files.c.sha256).where(files.c.id == file_id, files.c.gone_at.is_(None)))


def _file(row: sa.Row[*tuple[Any, ...]]) -> FileRow:
    return FileRow(**row._mapping)
