"""Which files the vector stores hold: their bytes are kept as long as a store has them, on the list of files or not.

A hold is placed in the transaction in which a store takes a file, and released in the one in which it lets it go. What
earlier releases left between the two is put right at the next start (``reconcile``).
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import sqlalchemy as sa

from adapters.database.sql import insert
from service.access.caller import Caller
from service.database import Database
from service.errors import BadRequest
from service.files import records
from service.files.accessible import STORE
from service.files.purposes import DOCUMENTS, visible
from service.files.records import FileRow
from service.files.service import Files, not_found
from service.files.tables import file_holds, files


class FileHolds:
    """Holds of vector stores on uploaded files; the bytes of a held file are kept."""

    def __init__(self, file_service: Files, database: Database) -> None:
        self._files = file_service
        self._database = database

    async def collect(self) -> None:
        """Remove the bytes of deleted files whose last hold was released; what fails is left to the next sweep."""
        await self._files.try_collect()

    async def reconcile(self, contents: Set[tuple[str, str]]) -> None:
        """Make the holds match ``contents``, pairs of store id and file id."""

        def work(db: sa.Connection) -> None:
            rows = db.execute(sa.select(file_holds.c.holder, file_holds.c.file_id).where(file_holds.c.kind == STORE))
            held = {(row.holder, row.file_id) for row in rows}
            for store_id, file_id in held - contents:
                db.execute(
                    file_holds.delete().where(
                        file_holds.c.kind == STORE, file_holds.c.holder == store_id, file_holds.c.file_id == file_id
                    )
                )
            existing = set(db.scalars(sa.select(files.c.id).where(files.c.gone_at.is_(None))))
            for store_id, file_id in contents - held:
                if file_id in existing:
                    _insert_hold(db, store_id, file_id)

        await self._database.run(work)


def place_holds(db: sa.Connection, caller: Caller, file_ids: Sequence[str], param: str, store_id: str) -> list[FileRow]:
    """Hold files for a store, in the order of ``file_ids``; returns their rows.

    Raises:
        NotFound: One is not on the project's list, or not within the caller's reach.
        BadRequest: One is no document.
    """
    purposes, held = visible(caller), []
    for file_id in file_ids:
        row = records.find(db, caller, file_id)
        if row is None or row.purpose not in purposes:
            raise not_found(file_id, param)
        if row.purpose not in DOCUMENTS:
            raise _not_a_document(row, param)
        held.append(row)
        _insert_hold(db, store_id, file_id)
    return held


def release_holds(db: sa.Connection, store_id: str, file_ids: Sequence[str] | None = None) -> None:
    """Release a store's holds on these files; None: on all of its files."""
    of_store = sa.and_(file_holds.c.kind == STORE, file_holds.c.holder == store_id)
    if file_ids is None:
        db.execute(file_holds.delete().where(of_store))
    for file_id in file_ids or ():
        db.execute(file_holds.delete().where(of_store, file_holds.c.file_id == file_id))


def _insert_hold(db: sa.Connection, store_id: str, file_id: str) -> None:
    db.execute(insert(db, file_holds).values(file_id=file_id, kind=STORE, holder=store_id).on_conflict_do_nothing())


def _not_a_document(row: FileRow, param: str) -> BadRequest:
    allowed = " or ".join(f"`{purpose}`" for purpose in sorted(DOCUMENTS))
    return BadRequest(
        f"`{param}`: the file {row.id!r} has the purpose `{row.purpose}`; documents need {allowed}", param=param
    )
