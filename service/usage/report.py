"""``GET /v1/usage``: validates the query, restricts it to what the caller may see, and formats the rows."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import orjson
import sqlalchemy as sa

from service.access.audit import ADMIN_ID
from service.access.caller import Caller, Scope
from service.database import Database
from service.errors import BadRequest
from service.usage import records as usage_records
from service.usage.account import DAY_S, UsageAccount
from service.usage.counter import HOUR_S
from service.usage.records import DIMENSIONS, SHOWN, Dimension, Selection

MAX_RANGE_S: Final = 366 * DAY_S
MAX_NUMBER: Final = 2**53
WIDTHS: Final = {"hour": HOUR_S, "day": DAY_S}
Bucket: TypeAlias = Literal["hour", "day"]
Value: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A query for usage; times are Unix seconds, a filter of None matches everything.

    ``by`` are the names to group by, as they were given; None is all of them. ``after`` is the ``id`` of a row.
    """

    start: int | None = None
    end: int | None = None
    bucket: Bucket = "hour"
    by: Sequence[str] | None = None
    project: str | None = None
    key: str | None = None
    adapter: str | None = None
    after: str | None = None
    limit: int = 100


class UsageReport:
    """Answers usage queries; pending counts are written first, so no answer is stale."""

    def __init__(self, database: Database, account: UsageAccount, *, wall: Callable[[], float] = time.time) -> None:
        self._database = database
        self._account = account
        self._wall = wall

    async def read(self, caller: Caller, query: UsageQuery) -> dict[str, Any]:
        """One page: ``{"object": "list", "start", "end", "only_key", "data": [...], "has_more"}``, oldest first.

        An admin's key sees everything, every other its own usage alone: a filter for what it may not see finds
        nothing, as a filter for what does not exist. ``start`` is rounded down and ``end`` up to whole buckets.

        A row is ``{"object": "usage", "id", "start", "end", <what it was grouped by>, "requests", "errors",
        "prompt_tokens", "completion_tokens", "cached_tokens"}``; ``key`` brings ``key_name`` along. ``adapter`` is
        the base's name where the base answered, null where the model's name stood for nothing; ``version`` is null in
        both cases.

        Raises:
            BadRequest: The time or the grouping makes no sense, or ``after`` is no row's id.
            HatrackError: The database cannot be written.
        """
        selection = selection_of(query, self._wall())
        await self._account.flush()
        sees_all = caller.may(Scope.ADMIN)
        visible = selection if sees_all else own(selection, caller)
        rows = await self._database.run(partial(_page, selection=visible), read_only=True)
        data = [_row(row, selection) for row in rows[: query.limit]]
        return {
            "object": "list",
            "start": selection.start,
            "end": selection.end,
            "only_key": None if sees_all else caller.key_id,
            "data": data,
            "has_more": len(rows) > query.limit,
        }


def selection_of(query: UsageQuery, now: float) -> Selection:
    """The rows that a query asks for, and one more; without a period, the 24 hours before ``now`` (Unix seconds).

    Raises:
        BadRequest: The time or the grouping makes no sense, or ``after`` is no row's id.
    """
    end = query.end if query.end is not None else int(now) + 1
    start = query.start if query.start is not None else end - DAY_S
    if start >= end:
        raise BadRequest(f"`start` must be before `end`; got {start} and {end}", param="start")
    if end - start > MAX_RANGE_S:
        raise BadRequest(
            f"the range from `start` to `end` must be at most {MAX_RANGE_S} s; got {end - start}. "
            "Query one year at a time",
            param="start",
        )
    width = WIDTHS[query.bucket]
    by = _dimensions(query.by)
    return Selection(
        start=start - start % width,
        end=end + -end % width,
        width_s=width,
        by=by,
        project=query.project,
        key=query.key,
        adapter=query.adapter,
        after=None if query.after is None else _values(query.after, by),
        limit=query.limit + 1,
    )


def _dimensions(names: Sequence[str] | None) -> tuple[Dimension, ...]:
    if names is None:
        return DIMENSIONS
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise BadRequest(
            f"`group_by` must be one of {', '.join(f'`{name}`' for name in DIMENSIONS)}; got {unknown[0][:100]!r}",
            param="group_by",
        )
    chosen = (
        {*names, "adapter"} if "version" in names else set(names)
    )  # a version number means nothing without its adapter
    return tuple(name for name in DIMENSIONS if name in chosen)


def own(selection: Selection, caller: Caller) -> Selection:
    """The selection without what is not the caller's own."""
    if selection.project not in (None, caller.project) or selection.key not in (None, caller.key_id):
        return replace(selection, key="")  # nobody's id
    return replace(selection, project=caller.project, key=caller.key_id)


def _page(db: sa.Connection, selection: Selection) -> list[dict[str, Any]]:
    rows = usage_records.select(db, selection)
    if "key" in selection.by:
        names = {ADMIN_ID: ADMIN_ID} | usage_records.key_names(db, {row["key"] for row in rows})
        for row in rows:
            row["key_name"] = names.get(row["key"])
    return rows


def _row(row: dict[str, Any], selection: Selection) -> dict[str, Any]:
    return place(row, selection, "usage") | {name: int(row[name]) for name in SHOWN}


def place(row: dict[str, Any], selection: Selection, kind: str) -> dict[str, Any]:
    """The beginning of a row's object of this kind: its id, its time, and what it was grouped by."""
    shown: dict[str, Any] = {
        "object": kind,
        "id": _id([row[name] for name in selection.by]),
        "start": row.get("hour", selection.start),
        "end": row["hour"] + selection.width_s if "hour" in row else selection.end,
    }
    for name in ("project", "key", "key_name"):
        if name in row:
            shown[name] = row[name]
    for name in ("adapter", "version"):
        if name in row:
            shown[name] = row[name] or None
    return shown


def _id(values: list[Value]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def _values(text: str, by: tuple[Dimension, ...]) -> tuple[Value, ...]:
    """What ``_id`` was made of."""
    invalid = BadRequest(
        "`after` must be the `id` of a row from the same query; use the last row of the previous page", param="after"
    )
    try:
        values = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        raise invalid from None
    kinds = [int if name in ("hour", "version") else str for name in by]
    if not by or not isinstance(values, list) or [type(value) for value in values] != kinds:
        raise invalid
    if any(isinstance(value, int) and not 0 <= value <= MAX_NUMBER for value in values):
        raise invalid
    return tuple(values)
