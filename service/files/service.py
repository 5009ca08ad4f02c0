"""Files: taken in, listed, given out, taken off the list; their bytes kept as long as somebody needs them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from service.access.audit import Actor, note
from service.access.caller import Caller, Scope
from service.access.records import require_project
from service.concurrency import in_thread, repeat
from service.database import Database
from service.errors import BadRequest, Forbidden, HatrackError, NotFound
from service.files import holds, records
from service.files.blob_store import BlobStore, Incoming
from service.files.form import Upload
from service.files.purposes import Purpose, demand, parse_purpose, visible
from service.files.reach import VERSION
from service.files.records import Draft, FileRow

ID_CHARS: Final = 24
SWEEP_S: Final = 60.0
"""Seconds between two looks for bytes that nobody needs any more."""
_ID_ALPHABET: Final = string.digits + string.ascii_letters
_LOG = logging.getLogger("hatrack.files")

Receive = Callable[[Incoming], Awaitable[Upload]]
"""Reads an upload: the file's bytes go to the given place, the rest is returned."""


class Files:
    """The files of all projects.

    Args:
        root: The directory of their bytes.
        database: Opened before :meth:`open`.
        max_file_bytes: Most bytes of one file.
        max_project_bytes: Most bytes of one project's files together.
    """

    def __init__(self, root: Path, database: Database, *, max_file_bytes: int, max_project_bytes: int) -> None:
        self._blobs = BlobStore(root)
        self._database = database
        self.max_file_bytes = max_file_bytes
        self._max_project_bytes = max_project_bytes
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Clean up after a crash, and begin to look for bytes that nobody needs."""
        kept = await self._database.run(records.kept)
        removed = await in_thread(self._blobs.open, kept)
        if removed:
            _LOG.info("removed what interrupted uploads had left", extra={"files": removed})
        self._sweeping = asyncio.create_task(repeat(self.collect, SWEEP_S), name="files-sweep")

    async def close(self) -> None:
        """Stop looking."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    # reading

    async def show(self, caller: Caller, file_id: str) -> dict[str, Any]:
        """One file in the API's form. Raises NotFound, Forbidden."""
        return shown(await self._find(caller, file_id))

    async def page(
        self, caller: Caller, *, purpose: str | None, after: str | None, limit: int, order: str
    ) -> dict[str, Any]:
        """A page of the files that the caller may see.

        Raises:
            BadRequest: ``after`` names none of them, or there is no such purpose.
            Forbidden: The key may not see files of that purpose.
        """
        purposes = visible(caller)
        if purpose is not None:
            wanted = parse_purpose(purpose)
            demand(caller, wanted)
            purposes = frozenset({wanted})
        found = await self._database.run(
            lambda db: records.page(db, caller, purposes, after=after, limit=limit + 1, newest_first=order == "desc")
        )
        if found is None:
            raise BadRequest("`after` names no file", param="after")
        data = [shown(row) for row in found[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }

    async def content(self, caller: Caller, file_id: str) -> tuple[FileRow, Path]:
        """A file and where its bytes are; a job reads what its key, or a version that it may use, holds, on the list or
        not: what is compared, and what a job trained on from, must be known for what it was taught.

        Raises:
            NotFound, Forbidden.
        """
        row = await self._find(caller, file_id)
        return row, self._blobs.path(row.id)

    async def named(
        self, caller: Caller, file_id: str, purposes: Sequence[Purpose], param: str, *, version: str | None = None
    ) -> FileRow:
        """The file that a request's body names in ``param``.

        Args:
            purposes: Those that will do.
            version: ``name@number``; what it holds may be off the list.

        Raises:
            NotFound: The project has no such file.
            BadRequest: It is for something else.
        """
        row = await self._database.run(lambda db: records.find_held(db, caller, file_id, version or "", kind=VERSION))
        if row is None or row.purpose not in visible(caller):
            raise not_found(file_id, param)
        if row.purpose not in purposes:
            needed = " or ".join(f"`{purpose}`" for purpose in purposes)
            raise BadRequest(
                f"`{param}` names a file with the purpose `{row.purpose}`; {needed} is needed", param=param
            )
        return row

    async def _find(self, caller: Caller, file_id: str) -> FileRow:
        purposes = visible(caller)

        def read(db: sa.Connection) -> FileRow | None:
            row = records.find_held(db, caller, file_id, caller.key_id)
            if row is None and caller.background and caller.may(Scope.ADAPTERS):
                return records.find_kept(db, caller.project, file_id, caller.may_use)
            return row

        row = await self._database.run(read)
        if row is None or row.purpose not in purposes:
            raise not_found(file_id)
        return row

    # changing

    async def create(self, caller: Caller, receive: Receive, *, actor: Actor) -> dict[str, Any]:
        """Take a file in: it is listed once all of it is on the disk, and not at all where anything goes wrong.

        Raises:
            NotFound: There is no such project.
            HatrackError: The upload is not well formed, too large, or may not be made with this key.
            DiskFull: There is no room.
        """
        visible(caller)
        await self._database.run(lambda db: self._demand_place(db, caller.project))
        incoming = self._blobs.receive(max_bytes=self.max_file_bytes)
        file_id = "file-" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS))
        try:
            upload = await receive(incoming)
        except BaseException:
            incoming.discard()
            raise
        draft = Draft(
            id=file_id,
            project=caller.project,
            filename=upload.filename,
            purpose=upload.purpose,
            bytes=incoming.bytes_written,
            sha256=incoming.sha256,
            expires_after_s=upload.expires_after_s,
            key_id=caller.key_id,
        )
        # to the end, whoever leaves: never bytes without a row
        return await asyncio.shield(asyncio.ensure_future(self._keep(incoming, draft, actor)))

    def _demand_place(self, db: sa.Connection, project: str) -> None:
        require_project(db, project)
        records.demand_room(db, project, 1, self._max_project_bytes)

    async def _keep(self, incoming: Incoming, draft: Draft, actor: Actor) -> dict[str, Any]:
        def work(db: sa.Connection) -> FileRow:
            records.demand_room(db, draft.project, draft.bytes, self._max_project_bytes)
            row = records.add(db, draft)
            note(
                db,
                actor,
                "file.create",
                row.id,
                {"purpose": row.purpose, "filename": row.filename, "bytes": row.bytes, "sha256": row.sha256},
            )
            return row

        try:
            await in_thread(incoming.keep, draft.id)
            return shown(await self._database.run(work))
        except HatrackError:
            await in_thread(self._blobs.remove, [draft.id])
            raise
        finally:
            incoming.discard()

    async def delete(self, caller: Caller, file_id: str, *, actor: Actor) -> None:
        """Take a file off the list; its bytes go when no version was trained on it and no job needs it.

        Raises:
            NotFound: There is none that the caller reaches.
            Forbidden: It also belongs to what the key's globs do not match, and was not uploaded with the key.
        """
        purposes = visible(caller)

        def work(db: sa.Connection) -> None:
            row = records.find(db, caller, file_id)
            if row is None or row.purpose not in purposes:
                raise not_found(file_id)
            if not records.may_delete(db, caller, file_id):
                raise Forbidden(
                    f"the file {file_id[:80]!r} also belongs to adapters or vector stores that the API key's globs do "
                    "not match: a key that may use them must delete it",
                    param="file_id",
                    code="file_not_allowed",
                )
            records.delete(db, file_id)
            note(db, actor, "file.delete", file_id, {"purpose": row.purpose, "filename": row.filename})

        await self._database.run(work)
        await self.collect()

    async def hold(self, project: str, key_id: str, file_ids: dict[str, str], *, version: str | None = None) -> None:
        """A job's key holds files as long as it lives.

        Args:
            file_ids: By the field of the request that names them.
            version: ``name@number``; what it holds may be off the list.

        Raises:
            NotFound: One is not on the list any more.
        """
        missing = await self._database.run(
            lambda db: holds.hold_for_key(db, project, key_id, list(file_ids.values()), version)
        )
        if missing is not None:
            raise not_found(missing, next(param for param, file_id in file_ids.items() if file_id == missing))

    async def collect(self) -> list[str]:
        """Remove the bytes that nobody needs any more; the ids of their files."""
        going = await self._database.run(holds.let_go)
        if going:
            await in_thread(self._blobs.remove, going)
        return going


def shown(row: FileRow) -> dict[str, Any]:
    """A file as the API shows it: OpenAI's fields, and its digest."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": row.expires_at,
        "sha256": row.sha256,
    }


def not_found(file_id: str, param: str = "file_id") -> NotFound:
    """The answer for a file that does not exist, and for one that is not the caller's."""
    return NotFound(f"there is no file {file_id[:80]!r}", param=param, code="file_not_found")
