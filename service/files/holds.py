"""Holds on files: versions trained or judged on a file, running jobs and batches keep its bytes after it was deleted.

A dataset's version is its file: the file cannot be deleted before the version is.

A version's hold is placed in the transaction that adds the version, or a verdict on it, and released in the one that
deletes the version. A job's hold is its key's: it counts as long as the key lives, so that nobody has to give it back
when a job ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from adapters.database.sql import insert
from service.access.audit import ADMIN_ID, SYSTEM_ID
from service.access.caller import Caller
from service.access.records import find as find_key
from service.access.tables import keys
from service.errors import Conflict
from service.files.accessible import BATCH, DATASET, KEY, VERSION, accessible
from service.files.records import is_listed, now
from service.files.tables import file_holds, files

_UNBOUND: Final = (None, ADMIN_ID, SYSTEM_ID)
MAX_LINEAGE_FILES: Final = 64
"""Maximum files that one version may hold; of a longer lineage the first ones are held."""


def hold_for_key(
    db: sa.Connection, project: str, key_id: str, file_ids: Sequence[str], version: str | None = None
) -> str | None:
    """Hold files for a job's key; they must be on the project's list.

    Args:
        version: ``name@number``; what it holds may be off the list.

    Returns:
        The first of them that is not; then none is held.
    """
    held = _reachable(db, project, file_ids, version=version)
    for file_id in file_ids:
        if file_id not in held:
            return file_id
    _insert_holds(db, KEY, key_id, held)
    return None


def hold_for_version(
    db: sa.Connection, project: str, version: str, metadata: dict[str, Any], key_id: str | None = None
) -> None:
    """Hold the files that a version's lineage names, if the project still has their bytes.

    Args:
        version: ``name@number``.
        key_id: Who uploads the version: it holds no file that this key does not reach. None reaches all.
        metadata: What was uploaded with the version: ``lineage.files`` is a list of ids, or there is none.
    """
    file_ids = lineage_files(metadata)
    if file_ids:
        row = None if key_id in _UNBOUND else find_key(db, key_id)
        if row is None and key_id not in _UNBOUND:
            return  # revoked in the middle of its upload
        query = sa.select(files.c.id).where(
            files.c.project == project,
            files.c.id.in_(file_ids),
            files.c.gone_at.is_(None),
            sa.true() if row is None else accessible(row.caller()),
        )
        _insert_holds(db, VERSION, version, set(db.scalars(query)))


def hold_for_verdict(
    db: sa.Connection, caller: Caller, version: str, files_by_field: Mapping[str, str]
) -> tuple[str, str] | None:
    """Hold the files of a verdict for the version that was judged.

    Each must be on the project's list and within the caller's reach, or be held already: by the version (what it is
    judged on again), or by the key that brings the verdict (what a job was given).

    Args:
        version: ``name@number``.
        files_by_field: File ids by the field that names them.

    Returns:
        The first field and id of which that is not so; then none is held.
    """
    held = _reachable(
        db,
        caller.project,
        list(files_by_field.values()),
        version=version,
        key_id=caller.key_id,
        listed=accessible(caller),
    )
    for param, file_id in files_by_field.items():
        if file_id not in held:
            return param, file_id
    _insert_holds(db, VERSION, version, held)
    return None


def release_versions(db: sa.Connection, project: str, name: str, numbers: Sequence[int]) -> None:
    """Release the holds of deleted versions of an adapter."""
    of_project = sa.select(files.c.id).where(files.c.project == project)
    for number in numbers:
        db.execute(
            file_holds.delete().where(
                file_holds.c.kind == VERSION,
                file_holds.c.holder == f"{name}@{number}",
                file_holds.c.file_id.in_(of_project),
            )
        )


def hold_for_dataset(db: sa.Connection, project: str, version: str, file_id: str) -> bool:
    """Hold the file that a dataset's version, ``name@number``, is. False, and no hold, if it is off the list."""
    held = _reachable(db, project, [file_id])
    _insert_holds(db, DATASET, version, held)
    return bool(held)


def release_dataset(db: sa.Connection, version: str, file_id: str) -> None:
    """Release the hold of a dataset's version that is deleted."""
    db.execute(
        file_holds.delete().where(
            file_holds.c.file_id == file_id, file_holds.c.kind == DATASET, file_holds.c.holder == version
        )
    )


def hold_for_batch(db: sa.Connection, project: str, batch_id: str, file_id: str) -> bool:
    """Hold the input file of a batch until ``release_batch``. False, and no hold, if it is off the list."""
    held = _reachable(db, project, [file_id])
    _insert_holds(db, BATCH, batch_id, held)
    return bool(held)


def release_batch(db: sa.Connection, batch_id: str) -> None:
    """Release the hold of a batch that has ended."""
    db.execute(file_holds.delete().where(file_holds.c.kind == BATCH, file_holds.c.holder == batch_id))


def dataset_versions(db: sa.Connection, file_id: str) -> list[str]:
    """The datasets' versions that are this file, as ``name@number``, sorted."""
    query = sa.select(file_holds.c.holder).where(file_holds.c.file_id == file_id, file_holds.c.kind == DATASET)
    return sorted(db.scalars(query))


def held_by_jobs(db: sa.Connection, file_ids: Sequence[str]) -> set[str]:
    """Which of the files a job or an evaluation in progress holds: one whose key is alive."""
    query = sa.select(file_holds.c.file_id).where(
        file_holds.c.kind == KEY,
        file_holds.c.file_id.in_(sorted(set(file_ids))),
        file_holds.c.holder.in_(_alive(now())),
    )
    return set(db.scalars(query))


def lineage_files(metadata: dict[str, Any]) -> list[str]:
    """The ids of the files that a version was trained on, as its metadata says."""
    lineage = metadata.get("lineage")
    file_ids = lineage.get("files") if isinstance(lineage, dict) else None
    if not isinstance(file_ids, list):
        return []
    return [file_id for file_id in file_ids if isinstance(file_id, str)][:MAX_LINEAGE_FILES]


def release_unheld(db: sa.Connection) -> list[str]:
    """Mark the bytes of deleted files that nothing holds as gone; returns the files' ids.

    Their rows are updated first, so that no later hold can rely on bytes that are about to be removed.
    """
    time = now()
    db.execute(file_holds.delete().where(file_holds.c.kind == KEY, file_holds.c.holder.not_in(_alive(time))))
    held = sa.exists().where(file_holds.c.file_id == files.c.id)
    unheld = sa.and_(sa.not_(is_listed(time)), files.c.gone_at.is_(None), sa.not_(held))
    return list(db.scalars(files.update().where(unheld).values(gone_at=time).returning(files.c.id)))


def _alive(time: int) -> sa.Select[tuple[str]]:
    """The ids of all keys that are neither revoked nor expired at ``time``, Unix seconds."""
    return sa.select(keys.c.id).where(
        keys.c.revoked_at.is_(None), sa.or_(keys.c.expires_at.is_(None), keys.c.expires_at > time)
    )


def _reachable(
    db: sa.Connection,
    project: str,
    file_ids: Sequence[str],
    *,
    version: str | None = None,
    key_id: str | None = None,
    listed: sa.ColumnElement[bool] | None = None,
) -> set[str]:
    """Which of the project's files are on its list, or are kept because the version or the key holds them.

    Args:
        listed: What else must be true of those on the list.
    """
    holder = sa.or_(
        sa.and_(file_holds.c.kind == VERSION, file_holds.c.holder == version),
        sa.and_(file_holds.c.kind == KEY, file_holds.c.holder == key_id),
    )
    held = sa.and_(sa.exists().where(file_holds.c.file_id == files.c.id, holder), files.c.gone_at.is_(None))
    requested = sa.and_(files.c.project == project, files.c.id.in_(sorted(set(file_ids))))
    on_list = is_listed(now()) if listed is None else sa.and_(is_listed(now()), listed)
    return set(db.scalars(sa.select(files.c.id).where(requested, sa.or_(on_list, held))))


def _insert_holds(db: sa.Connection, kind: str, holder: str, file_ids: set[str]) -> None:
    for file_id in sorted(file_ids):
        db.execute(insert(db, file_holds).values(file_id=file_id, kind=kind, holder=holder).on_conflict_do_nothing())


def refuse_dataset(db: sa.Connection, caller: Caller, file_id: str) -> None:
    """Raise Conflict if the file is a dataset's version."""
    versions = dataset_versions(db, file_id)
    if not versions:
        return
    shown = [f"`{version}`" for version in versions if caller.may_use(version.partition("@")[0])]
    named = ", ".join(shown[:3]) or "a dataset that the API key's globs do not match"
    raise Conflict(
        f"the file {file_id[:80]!r} is a version of a dataset ({named}); delete that version first",
        param="file_id",
        code="file_in_use",
    )
