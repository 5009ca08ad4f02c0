"""Datasets of all projects: push, list, compare, delete; and what a job means by a dataset's name.

A dataset is visible to the keys of its project with the scope `train`. A key with globs over adapters uses the datasets
whose names they match; others do not exist for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from adapters.errors import AdapterError
from adapters.names import FILE_ID_PREFIX, parse_dataset, parse_version
from service.access.audit import Actor, note
from service.access.caller import Caller
from service.concurrency import in_thread
from service.database import Database
from service.datasets import records
from service.datasets.diff import MAX_DIFF_ROWS, compare, count_rows, describe
from service.datasets.records import DatasetRow, DatasetVersionRow
from service.datasets.schemas import DatasetPush
from service.errors import BadRequest, Conflict, Forbidden, NotFound, Unprocessable
from service.files.holds import held_by_jobs
from service.files.purposes import Purpose
from service.files.records import FileRow
from service.files.service import Files, not_found


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a request names by its id, or by a dataset; ``dataset`` is then its `name@version`."""

    file: FileRow
    dataset: str | None


async def named_file(
    database: Database,
    files: Files,
    caller: Caller,
    text: str,
    purposes: Sequence[Purpose],
    param: str,
    *,
    version: str | None = None,
) -> NamedFile:
    """The file that a request's body names in ``param``: `file-…`, `support@3`, or `support` for the newest version.

    Args:
        purposes: Those that will do; a dataset's is `fine-tune`.
        version: An adapter's ``name@number``; what it holds may be off the list.

    Raises:
        NotFound: The project has no such file, dataset or version.
        BadRequest: The file is for something else.
    """
    if text.startswith(FILE_ID_PREFIX):
        return NamedFile(await files.named(caller, text, purposes, param, version=version), None)
    try:
        reference = parse_dataset(text)
    except AdapterError:
        raise not_found(text, param) from None
    row = await database.run(lambda db: _visible(db, caller, reference.name))
    if row is None and reference.version is None:
        raise NotFound(f"no such file or dataset: {text[:80]!r}", param=param, code="file_not_found")
    if row is None:
        raise _dataset_not_found(reference.name, param)
    chosen = row.latest if reference.version is None else _require_version(row, reference.version, param)
    file = await files.named(caller, chosen.file_id, purposes, param)
    return NamedFile(file, f"{row.name}@{chosen.number}")


class Datasets:
    """The datasets of all projects.

    Args:
        database: Has the datasets.
        files: Have the versions' bytes.
    """

    def __init__(self, database: Database, files: Files) -> None:
        self._database = database
        self._files = files
        self._comparing = asyncio.Semaphore(1)
        """One comparison at a time: each may read two large files and hold a digest of every row."""

    # reading

    async def page(self, caller: Caller, *, after: str | None, limit: int) -> dict[str, Any]:
        """A page of the datasets that the caller may use, oldest first. Raises BadRequest for an unknown ``after``."""
        rows = await self._database.run(lambda db: records.listed(db, caller.project, after, limit + 1, caller.may_use))
        if rows is None:
            raise BadRequest("`after` is not the name of a dataset in this list", param="after")
        data = [dataset_object(row) for row in rows[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["name"] if data else None,
            "last_id": data[-1]["name"] if data else None,
            "has_more": len(rows) > limit,
        }

    async def show(self, caller: Caller, name: str) -> dict[str, Any]:
        """One dataset. Raises NotFound."""
        return dataset_object(await self._find(caller, name))

    async def version(self, caller: Caller, name: str, number: str) -> dict[str, Any]:
        """One version. Raises NotFound."""
        row = await self._find(caller, name)
        return version_object(row.name, _parsed_version(row, number))

    async def diff(self, caller: Caller, name: str, number: str, *, against: int, limit: int) -> dict[str, Any]:
        """What differs between two versions, with the first ``limit`` rows of each kind.

        Raises:
            NotFound: The dataset or one of the versions does not exist.
            Unprocessable: A version has more than MAX_DIFF_ROWS rows.
        """
        row = await self._find(caller, name)
        new, old = _parsed_version(row, number), _require_version(row, against, "against")
        for version in (new, old):
            if version.rows > MAX_DIFF_ROWS:
                raise Unprocessable(
                    f"`{row.name}@{version.number}` has {version.rows} rows; versions can be compared up to "
                    f"{MAX_DIFF_ROWS} rows",
                    code="dataset_too_large",
                )
        _, new_path = await self._files.content(caller, new.file_id)
        _, old_path = await self._files.content(caller, old.file_id)
        async with self._comparing:
            try:
                differences = await in_thread(_diff, new_path, old_path, limit)
            except FileNotFoundError:  # deleted meanwhile
                raise _version_not_found(row, number) from None
        versions = {"dataset": row.name, "version": new.number, "against": old.number}
        return {"object": "dataset.diff", **versions, **differences}

    # changing

    async def push(self, caller: Caller, request: DatasetPush, *, actor: Actor) -> tuple[dict[str, Any], bool]:
        """Make a file the dataset's next version. Returns the version, and whether it is new.

        Raises:
            BadRequest: The name is not valid; the file is not for training, or expires.
            Forbidden: The caller is a job, or the key's globs do not match the name.
            NotFound: There is no such file.
        """
        name = self._allowed_name(caller, request.name)
        file = await self._files.named(caller, request.file, (Purpose.FINE_TUNE,), "file")
        if file.expires_at is not None:
            raise BadRequest(
                f"`file` is {file.id!r}, which expires; a dataset keeps its files: upload it without `expires_after`",
                param="file",
            )
        _, path = await self._files.content(caller, file.id)
        try:
            rows = await in_thread(count_rows, path)
        except FileNotFoundError:  # deleted meanwhile
            raise not_found(file.id, "file") from None

        def work(db: sa.Connection) -> tuple[DatasetRow, bool]:
            added = records.add_version(db, file, name, rows=rows, note=request.note, key_id=caller.key_id)
            if added is None:
                raise not_found(file.id, "file")
            row, is_new = added
            if is_new:
                detail = {"file": file.id, "sha256": file.sha256, "rows": rows}
                note(db, actor, "dataset.push", f"{name}@{row.latest.number}", detail)
            return row, is_new

        row, is_new = await self._database.run(work)
        return version_object(row.name, row.latest) | {"unchanged": not is_new}, is_new

    async def delete_version(self, caller: Caller, name: str, number: str, *, actor: Actor) -> None:
        """Delete a version; its file stays on the list of files.

        Raises:
            Forbidden: The caller is a job.
            NotFound: There is no such version.
            Conflict: A job or an evaluation in progress reads it.
        """
        _refuse_jobs(caller)

        def work(db: sa.Connection) -> None:
            row = _require(db, caller, name)
            _delete(db, row, [_parsed_version(row, number)], actor)

        await self._database.run(work)

    async def delete(self, caller: Caller, name: str, *, actor: Actor) -> None:
        """Delete a dataset with all its versions; raises as ``delete_version``."""
        _refuse_jobs(caller)

        def work(db: sa.Connection) -> None:
            row = _require(db, caller, name)
            _delete(db, row, row.versions, actor)

        await self._database.run(work)

    async def _find(self, caller: Caller, name: str) -> DatasetRow:
        return await self._database.run(lambda db: _require(db, caller, name))

    def _allowed_name(self, caller: Caller, text: str) -> str:
        """The name of a pushed dataset. Raises BadRequest, Forbidden."""
        _refuse_jobs(caller)
        try:
            reference = parse_dataset(text)
        except AdapterError as error:
            raise BadRequest(error.message, param="name", code=error.code) from None
        if reference.version is not None:
            raise BadRequest(
                f"`name` is {text[:80]!r}; send `{reference.name}` alone: the gateway numbers the versions",
                param="name",
            )
        if not caller.may_use(reference.name):
            globs = ", ".join(f"`{glob}`" for glob in caller.adapters or ()) or "none"
            raise Forbidden(
                f"the API key may only use datasets whose names match {globs}; got `{reference.name}`",
                param="name",
                code="dataset_not_allowed",
            )
        return reference.name


def _diff(new: Path, old: Path, limit: int) -> dict[str, Any]:
    difference = compare(new, old)
    counts = {
        "added": len(difference.added),
        "removed": len(difference.removed),
        "changed": len(difference.changed),
        "unchanged": difference.unchanged,
    }
    return {"counts": counts, **describe(new, old, difference, limit)}


def _delete(db: sa.Connection, row: DatasetRow, versions: Sequence[DatasetVersionRow], actor: Actor) -> None:
    in_use = held_by_jobs(db, [version.file_id for version in versions])
    for version in versions:
        if version.file_id in in_use:
            raise Conflict(
                f"a job or an evaluation in progress reads `{row.name}@{version.number}` (its file {version.file_id}); "
                "wait until it has ended, or cancel it",
                code="dataset_in_use",
            )
    records.delete_versions(db, row, versions)
    for version in versions:
        note(db, actor, "dataset.delete", f"{row.name}@{version.number}", {"file": version.file_id})


def _refuse_jobs(caller: Caller) -> None:
    if caller.background:
        raise Forbidden("a job's own key cannot change datasets", code="job_key")


def _visible(db: sa.Connection, caller: Caller, name: str) -> DatasetRow | None:
    return records.find(db, caller.project, name) if caller.may_use(name) else None


def _require(db: sa.Connection, caller: Caller, name: str) -> DatasetRow:
    row = _visible(db, caller, name)
    if row is None:
        raise _dataset_not_found(name)
    return row


def _parsed_version(row: DatasetRow, text: str) -> DatasetVersionRow:
    """The version in a path. Raises NotFound."""
    try:
        return _require_version(row, parse_version(text))
    except AdapterError:
        raise _version_not_found(row, text) from None


def _require_version(row: DatasetRow, number: int, param: str = "version") -> DatasetVersionRow:
    version = row.version(number)
    if version is None:
        raise _version_not_found(row, str(number), param)
    return version


def _dataset_not_found(name: str, param: str = "name") -> NotFound:
    return NotFound(f"no such dataset: {name[:80]!r}", param=param, code="dataset_not_found")


def _version_not_found(row: DatasetRow, number: str, param: str = "version") -> NotFound:
    return NotFound(
        f"the dataset `{row.name}` has no version {number[:20]!r}; the newest one is {row.latest.number}",
        param=param,
        code="dataset_version_not_found",
    )


def dataset_object(row: DatasetRow) -> dict[str, Any]:
    """The dataset as the API shows it."""
    return {
        "object": "dataset",
        "name": row.name,
        "created_at": row.created_at,
        "latest": row.latest.number,
        "versions": [version_object(row.name, version) for version in row.versions],
    }


def version_object(name: str, row: DatasetVersionRow) -> dict[str, Any]:
    """The version as the API shows it."""
    return {
        "object": "dataset.version",
        "dataset": name,
        "version": row.number,
        "file": row.file_id,
        "sha256": row.sha256,
        "bytes": row.bytes,
        "rows": row.rows,
        "note": row.note,
        "key_id": row.key_id,
        "created_at": row.created_at,
    }
