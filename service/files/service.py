"""Files: upload, list, download, delete; the bytes are kept as long as an object holds the file."""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import sqlalchemy as sa

from adapters.errors import Damaged
from service.access.audit import Actor, note
from service.access.caller import Caller, Scope
from service.access.records import require_project
from service.concurrency import in_thread, repeat
from service.database import Database, OutcomeUnknown
from service.errors import BadRequest, Forbidden, HatrackError, NotFound, TooLarge, Unprocessable
from service.files import holds, records
from service.files.accessible import VERSION
from service.files.blob_store import BlobStore, Incoming
from service.files.form import MAX_OVERHEAD_BYTES, FileUpload
from service.files.purposes import Purpose, demand, parse_purpose, visible
from service.files.records import FileRow, NewFile
from service.files.reservations import Reservation, Reservations
from service.files.schemas import file_object
from service.objects.cache import Copies, LocalCache
from service.objects.client import ObjectStore

P = ParamSpec("P")
T = TypeVar("T")
ID_CHARS: Final = 24
SWEEP_S: Final = 60.0
"""Seconds between two sweeps for bytes that nothing holds any more."""
CHARGE_STEP: Final = 1024 * 1024
"""Bytes for which a writer of results asks at once."""
_ID_ALPHABET: Final = string.digits + string.ascii_letters
_LOG = logging.getLogger("hatrack.files")

Receive = Callable[[Incoming], Awaitable[FileUpload]]
"""Reads an upload: writes the file's bytes to the ``Incoming``, and returns the other fields."""


@dataclass(frozen=True, slots=True)
class AdoptedFile:
    """A file of the gateway's own that is stored and not listed yet."""

    id: str
    bytes: int
    sha256: str


class Charge:
    """What one writer has written to files of a project that are not listed yet.

    Args:
        demand_room: Raises TooLarge if a reservation's last bytes, so many, are more than the project may have.
        reservation: Of the project.
    """

    def __init__(self, demand_room: Callable[[Reservation, int], Awaitable[None]], reservation: Reservation) -> None:
        self._demand_room = demand_room
        self._reservation = reservation
        self._written = 0

    def add(self, size: int) -> None:
        """Charge bytes that are written whether or not there is room."""
        self._written += size
        self._reservation.resize(max(self._reservation.size, self._written))

    async def take(self, size: int) -> None:
        """Charge bytes that are about to be written. Raises TooLarge, and charges nothing, if there is no room."""
        reserved = self._reservation.size
        if self._written + size > reserved:
            # a step of them at once, where there is room: the database is not asked for every line
            for step in (max(size, CHARGE_STEP), size):
                more = self._written + step - reserved
                self._reservation.resize(reserved + more)
                try:
                    await self._demand_room(self._reservation, more)
                    break
                except BaseException as error:
                    self._reservation.resize(reserved)
                    if step == size or not isinstance(error, TooLarge):
                        raise
        self._written += size


class Files:
    """The files of all projects.

    Args:
        root: The directory with the files' bytes.
        database: Opened before :meth:`open`.
        max_file_bytes: Maximum size of a file.
        max_project_bytes: Maximum total size of a project's files.
        objects: The object store that has the bytes, with what bounds the local copies; None: they are all local.
    """

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        max_file_bytes: int,
        max_project_bytes: int,
        objects: tuple[ObjectStore, LocalCache] | None = None,
    ) -> None:
        store, cache = objects or (None, None)
        self._blobs = BlobStore(root, store)
        self._copies = None if cache is None else Copies(cache, "file", self._fetch, self._blobs.drop)
        self._database = database
        self.max_file_bytes = max_file_bytes
        self._max_project_bytes = max_project_bytes
        self._reservations = Reservations()
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Clean up after a crash, and start the periodic sweep."""
        stored_ids = await self._database.run(records.stored_ids)
        removed = await in_thread(self._blobs.open, stored_ids)
        if self._copies is not None:
            self._copies.found(await in_thread(self._blobs.sizes))
        if removed:
            _LOG.info("removed remains of interrupted uploads", extra={"files": removed})
        self._sweeping = asyncio.create_task(repeat(self.collect, SWEEP_S), name="files-sweep")

    async def close(self) -> None:
        """Stop the sweep."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    # reading

    async def show(self, caller: Caller, file_id: str) -> dict[str, Any]:
        """One file in the API's form. Raises NotFound, Forbidden."""
        return file_object(await self._find(caller, file_id))

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
            requested = parse_purpose(purpose)
            demand(caller, requested)
            purposes = frozenset({requested})
        rows = await self._database.run(
            lambda db: records.page(db, caller, purposes, after=after, limit=limit + 1, newest_first=order == "desc")
        )
        if rows is None:
            raise BadRequest("`after` is not the id of a file in this list", param="after")
        data = [file_object(row) for row in rows[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(rows) > limit,
        }

    async def content(self, caller: Caller, file_id: str) -> tuple[FileRow, Path]:
        """A file and the path of its bytes.

        A job may also read deleted files that its key, or a version that it may use, holds.

        Raises:
            NotFound: The file does not exist, or the caller may not access it.
            Forbidden: The key has neither of the scopes for files.
            StoreUnavailable: They have to be fetched, and the object store does not answer.
            Unprocessable: The object store has lost them.
        """
        row = await self._find(caller, file_id)
        if self._copies is not None:
            await self._copies.lend(row.id)
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
            raise BadRequest(f"`{param}` needs a file with the purpose {needed}; got `{row.purpose}`", param=param)
        return row

    async def _find(self, caller: Caller, file_id: str) -> FileRow:
        purposes = visible(caller)

        def read(db: sa.Connection) -> FileRow | None:
            row = records.find_held(db, caller, file_id, caller.key_id)
            if row is None and caller.background and caller.may(Scope.ADAPTERS):
                return records.find_held_by_version(db, caller.project, file_id, caller.may_use)
            return row

        row = await self._database.run(read)
        if row is None or row.purpose not in purposes:
            raise not_found(file_id)
        return row

    # changing

    async def create(
        self, caller: Caller, receive: Receive, *, actor: Actor, body_bytes: int | None = None
    ) -> dict[str, Any]:
        """Store an upload: it is listed once it is completely on disk, and not at all if anything fails.

        Args:
            body_bytes: The size of the request's body, where it is declared.

        Raises:
            NotFound: There is no such project.
            HatrackError: The upload is not well formed, too large, or may not be made with this key.
            DiskFull: There is no room.
        """
        visible(caller)
        max_bytes = self.max_file_bytes if body_bytes is None else min(body_bytes, self.max_file_bytes)
        reservation = self._reservations.reserve(caller.project, max_bytes)
        try:
            await self._demand_room(caller.project, max(1, (body_bytes or 0) - MAX_OVERHEAD_BYTES), reservation)
            incoming = self._blobs.receive(max_bytes=self.max_file_bytes)
            try:
                upload = await receive(incoming)
            except BaseException:
                incoming.discard()
                raise
        except BaseException:
            reservation.release()
            raise
        new_file = NewFile(
            id=_new_id(),
            project=caller.project,
            filename=upload.filename,
            purpose=upload.purpose,
            bytes=incoming.bytes_written,
            sha256=incoming.sha256,
            expires_after_s=upload.expires_after_s,
            key_id=caller.key_id,
        )
        # to the end, whoever leaves: never bytes without a row
        keeping = asyncio.ensure_future(self._keep(incoming, new_file, actor))
        keeping.add_done_callback(lambda _: reservation.release())
        return await asyncio.shield(keeping)

    async def _demand_room(self, project: str, size: int, reservation: Reservation) -> None:
        """Raise TooLarge if there is no room for ``size`` bytes beside the uploads that began earlier."""
        while True:
            earlier = reservation.earlier_bytes

            def work(db: sa.Connection, earlier: int = earlier) -> None:
                require_project(db, project)
                records.demand_room(db, project, size, self._max_project_bytes, earlier)

            try:
                return await self._database.run(work)
            except TooLarge:
                if reservation.earlier_bytes == earlier:
                    raise
                # one has ended meanwhile: its bytes may have been counted twice, or be gone

    @contextmanager
    def charging(self, project: str) -> Iterator[Charge]:
        """Charge what is written outside the store, and will be adopted, to the project for as long as the context."""
        reservation = self._reservations.reserve(project, 0, is_written=True)
        try:
            yield Charge(partial(self._demand_more, project), reservation)
        finally:
            reservation.release()

    async def demand_any_room(self, project: str) -> None:
        """Raise TooLarge if the project may not store a single byte more."""
        await self._database.run(lambda db: records.demand_room(db, project, 1, self._max_project_bytes, param=None))

    async def _demand_more(self, project: str, reservation: Reservation, size: int) -> None:
        unlisted = reservation.size - size + reservation.other_bytes  # not in the database's thread: they change here
        await self._database.run(
            lambda db: records.demand_room(db, project, size, self._max_project_bytes, unlisted, param=None)
        )

    async def _keep(self, incoming: Incoming, new_file: NewFile, actor: Actor) -> dict[str, Any]:
        written = self._reservations.written_bytes(new_file.project)

        def work(db: sa.Connection) -> FileRow:
            records.demand_room(db, new_file.project, new_file.bytes, self._max_project_bytes, written)
            row = records.add(db, new_file)
            note(
                db,
                actor,
                "file.create",
                row.id,
                {"purpose": row.purpose, "filename": row.filename, "bytes": row.bytes, "sha256": row.sha256},
            )
            return row

        try:
            await self._transfer(incoming.keep, new_file.id)
            row = await self._database.run_or_ask(work, lambda db: records.saved(db, new_file.id))
        except OutcomeUnknown:  # bytes that nothing names go at the next start, or by `hatrack gc`
            raise
        except HatrackError:
            await self._transfer(self._blobs.remove, [new_file.id])
            raise
        finally:
            incoming.discard()
        self._added(new_file.id, new_file.bytes)
        return file_object(row)

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are while ``local`` has them here."""
        return self._blobs.path(file_id)

    @asynccontextmanager
    async def local(self, file_id: str) -> AsyncIterator[Path]:
        """Have the bytes of a file, that something holds, on the disk for as long as the context: where they are.

        Raises:
            StoreUnavailable: They have to be fetched, and the object store does not answer.
            Unprocessable: The object store has lost them.
        """
        if self._copies is None:
            yield self._blobs.path(file_id)
            return
        async with self._copies.holding(file_id):
            yield self._blobs.path(file_id)

    async def _fetch(self, file_id: str) -> int:
        sha256 = await self._database.run(lambda db: records.sha256_of(db, file_id))
        if sha256 is None:
            raise not_found(file_id)
        try:
            return await self._transfer(self._blobs.fetch, file_id, sha256)
        except Damaged as error:
            _LOG.error("a file cannot be fetched", extra={"file": file_id, "reason": error.message})
            raise Unprocessable(
                f"the bytes of the file {file_id!r} are missing or damaged in the object store; upload it again",
                code="file_damaged",
            ) from error

    async def _transfer(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what moves bytes: in the threads for the object store, where there is one."""
        run = in_thread if self._copies is None else self._copies.cache.run
        return await run(function, *args, **kwargs)

    def _added(self, file_id: str, size: int) -> None:
        if self._copies is not None:
            self._copies.added(file_id, size)
            self._copies.cache.trim_soon()

    async def adopt(self, source: Path) -> AdoptedFile:
        """Store a complete file that the gateway has written itself. Nobody sees it before ``records.add`` lists it.

        The source stays: until the file is listed, the next start removes what was stored here. Raises DiskFull,
        StoreUnavailable.
        """
        file_id = _new_id()
        sha256 = await self._transfer(self._blobs.adopt, source, file_id)
        size = source.stat().st_size
        self._added(file_id, size)
        return AdoptedFile(file_id, size, sha256)

    async def discard(self, file_ids: Collection[str]) -> None:
        """Remove adopted files that could not be listed."""
        await self._remove(file_ids)

    async def _remove(self, file_ids: Collection[str]) -> None:
        await self._transfer(self._blobs.remove, file_ids)
        if self._copies is not None:
            for file_id in file_ids:
                self._copies.dropped(file_id)

    async def delete(self, caller: Caller, file_id: str, *, actor: Actor) -> None:
        """Delete a file from the list; its bytes are removed once no version, job, batch or store holds it.

        Raises:
            NotFound: The file does not exist, or the caller may not access it.
            Forbidden: It also belongs to objects outside the key's globs, and was not uploaded with the key.
            Conflict: It is a dataset's version.
        """
        purposes = visible(caller)

        def work(db: sa.Connection) -> None:
            row = records.find(db, caller, file_id)
            if row is None or row.purpose not in purposes:
                raise not_found(file_id)
            if not records.may_delete(db, caller, file_id):
                raise Forbidden(
                    f"the file {file_id[:80]!r} also belongs to adapters or vector stores that the API key's globs do "
                    "not match; delete it with a key that may use them",
                    param="file_id",
                    code="file_not_allowed",
                )
            holds.refuse_dataset(db, caller, file_id)
            records.delete(db, file_id)
            note(db, actor, "file.delete", file_id, {"purpose": row.purpose, "filename": row.filename})

        await self._database.run(work)
        await self.try_collect()

    async def hold(self, project: str, key_id: str, file_ids: dict[str, str], *, version: str | None = None) -> None:
        """Hold files for a job's key, for as long as the key is valid.

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
        """Remove the bytes of deleted files that nothing holds; returns the files' ids."""
        if file_ids := await self._database.run(holds.release_unheld):
            await self._remove(file_ids)
        return file_ids

    async def try_collect(self) -> None:
        """Collect after a deletion, which is saved already: what fails is left to the next sweep."""
        try:
            await self.collect()
        except HatrackError as error:
            _LOG.warning("the bytes of deleted files could not be removed yet", extra={"reason": error.message})


def _new_id() -> str:
    return "file-" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS))


def not_found(file_id: str, param: str = "file_id") -> NotFound:
    """The error for a file that does not exist or that the caller may not access."""
    return NotFound(f"no such file: {file_id[:80]!r}", param=param, code="file_not_found")
