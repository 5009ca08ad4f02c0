"""What fronts report: usage, refusals, adapters that failed. Each batch is applied once, also over a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa

from service.access.authentication import Authenticator
from service.access.caller import Caller
from service.access.refusals import Refusals
from service.database import Database
from service.errors import BadRequest, HatrackError
from service.usage import records as usage_records
from service.usage.records import RowKey, UsageCounts

MAX_ROWS: Final = 100_000
COUNTS: Final = UsageCounts.__slots__


class FrontReports:
    """Applies the batches of all fronts.

    Args:
        writing: Held while usage is written, see ``UsageAccount.writing``.
        add_engine_time: Called with a project and its share of the engine's time, s, for the budgets.
        suspect: Called with the digest and the base of an adapter whose request failed in the engine.
    """

    def __init__(
        self,
        database: Database,
        authenticator: Authenticator,
        refusals: Refusals,
        *,
        writing: asyncio.Lock,
        add_engine_time: Callable[[str, float], None],
        suspect: Callable[[str, str], None],
    ) -> None:
        self._database = database
        self._authenticator = authenticator
        self._refusals = refusals
        self._writing = writing
        self._add_engine_time = add_engine_time
        self._suspect = suspect

    async def apply(self, front: str, batch: dict[str, Any]) -> bool:
        """Apply a batch; durable when this returns. False: it was applied before.

        Raises:
            BadRequest: It is malformed; nothing was applied.
            HatrackError: The database cannot be written; nothing was applied.
        """
        try:
            number = int(batch["number"])
            rows = {_row_key(row[:5]): UsageCounts(*row[5:]) for row in batch["rows"]}
            refused = [
                (int(status), code, key, str(peer), str(path), request)
                for status, code, key, peer, path, request in batch["refused"]
            ]
            suspects = [(str(digest), str(base)) for digest, base in batch["suspects"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest(f"a malformed report of a front: {type(error).__name__}") from error
        if len(rows) > MAX_ROWS:
            raise BadRequest(f"a front's report has {len(rows)} rows; the limit is {MAX_ROWS}")
        async with self._writing:  # the budgets read the database's sums either before both of this or after
            if not await self._database.run(lambda db: _apply(db, front, number, rows)):
                return False
            for (_, project, *_), counts in rows.items():
                if counts.engine_s:
                    self._add_engine_time(project, counts.engine_s)
        for status, code, key, peer, path, request in refused:
            self._refusals.note(status, code, self._caller(key), peer, path, request)
        for digest, base in suspects:
            self._suspect(digest, base)
        return True

    def _caller(self, key: Any) -> Caller | None:
        """The caller of a key's id and project; None if there was none, or it is revoked by now."""
        if not key:
            return None
        try:
            return self._authenticator.caller_with_id(str(key[0]), str(key[1]))
        except HatrackError:
            return None


def _row_key(row: list[Any]) -> RowKey:
    hour, project, key_id, adapter, version = row
    return int(hour), str(project), str(key_id), str(adapter), int(version)


def _apply(db: sa.Connection, front: str, number: int, rows: dict[RowKey, UsageCounts]) -> bool:
    if not usage_records.begin_batch(db, front, number):
        return False
    usage_records.add(db, rows)
    return True
