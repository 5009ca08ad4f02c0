"""``GET /v1/costs``: measured time of requests and runs, added up by what was asked for, at the operator's prices, and
what endpoints outside have charged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from adapters.costs import SECONDS_AN_HOUR, Prices, total
from adapters.protocol.costs import DeviceTimes, EndpointCharge, RunTime
from service.access.caller import Caller, Scope
from service.costs import records
from service.costs.budgets import BudgetService
from service.costs.runs import Measured
from service.errors import HatrackError
from service.usage import engine_time
from service.usage.engine_time import EngineSeconds
from service.usage.records import Selection
from service.usage.report import UsageQuery, own, place, selection_of

Group = tuple[int | str, ...]
"""The values of what is grouped by, in its order."""
COUNTS = ("requests", "prompt_tokens", "completion_tokens")
CHARGED = (*COUNTS, "money", "unpriced")
"""What is added up of the charges of endpoints outside."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The device time of runs, and what endpoints outside charged; None and why, if it cannot be had."""

    times: DeviceTimes | None
    reason: str | None = None


class CostReport:
    """Answers queries for costs; pending counts are written first, so no answer is stale."""

    def __init__(self, measured: Measured, budgets: BudgetService) -> None:
        self._measured = measured
        self._budgets = budgets

    async def read(self, caller: Caller, query: UsageQuery) -> dict[str, Any]:
        """One page, as ``service.costs.schemas.CostPage`` has it, sorted by what it is grouped by.

        An admin's key sees everything, every other its own requests and runs alone. A run's requests count for the
        key that created the run.

        Raises:
            BadRequest: The time or the grouping makes no sense, or ``after`` is no row's id.
            HatrackError: The database cannot be written.
        """
        measured = self._measured
        selection = selection_of(query, measured.wall())
        await measured.account.flush(whole=True)
        is_admin = caller.may(Scope.ADMIN)
        visible = selection if is_admin else own(selection, caller)
        rows = await measured.database.run(partial(records.select, selection=visible), read_only=True)
        runs = await self._runs(selection)
        rows = merged(rows, runs, visible)
        if "key" in selection.by:
            await measured.database.run(partial(records.add_key_names, rows=rows))
        shown = rows[: query.limit]
        prices = measured.prices
        return {
            "object": "list",
            "start": selection.start,
            "end": selection.end,
            "currency": prices.currency,
            "prices": {
                name: getattr(prices, name) for name in ("device_hour", "hosted_input", "hosted_output", "person_hour")
            },
            "data": [cost_row(row, selection, prices) for row in shown],
            "engine": await measured.database.run(partial(self._engine, selection=selection)) if is_admin else None,
            "runs": {"available": runs.times is not None, "reason": runs.reason},
            "budgets": await self._budgets.visible_to(caller, query.project),
            "has_more": len(rows) > query.limit,
        }

    async def _runs(self, selection: Selection) -> Runs:
        try:
            return Runs(await self._measured.trainer.device_times(selection.start, selection.end))
        except HatrackError as error:
            return Runs(None, error.message)

    def _engine(self, db: sa.Connection, selection: Selection) -> dict[str, Any]:
        seconds: EngineSeconds = engine_time.total(db, selection.start, selection.end)
        idle_s = max(0.0, seconds.up_s - seconds.busy_s)
        parts = {"busy": seconds.busy_s, "idle": idle_s, "own": seconds.own_s}
        return (
            {f"{name}_seconds": round(value, 3) for name, value in parts.items()}
            | {f"{name}_money": self._measured.prices.device(value) for name, value in parts.items()}
            | {"measured_since": engine_time.measured_since(db)}
        )


def merged(rows: list[dict[str, Any]], runs: Runs, selection: Selection) -> list[dict[str, Any]]:
    """Rows of requests with the ``training`` time of runs and the charges ``outside`` added, and rows of their own for
    runs and keys without requests here.

    ``rows`` are the first ``selection.limit`` after ``selection.after``, so those of both are the first of both.
    """
    if runs.times is None:
        return [row | {"training": None, "outside": None} for row in rows]
    groups: dict[Group, dict[str, Any]] = {
        tuple(row[name] for name in selection.by): row | {"training": 0.0, "outside": dict.fromkeys(CHARGED, 0)}
        for row in rows
    }
    for told in _selected((*runs.times.data, *runs.times.charges), selection):
        values: dict[str, int | str] = {
            "hour": told.hour - told.hour % selection.width_s,
            "project": told.project,
            "key": told.key_id,
            "adapter": told.adapter,
            "version": told.version or 0,
        }
        group: Group = tuple(values[name] for name in selection.by)
        if selection.after is not None and group <= selection.after:
            continue
        fresh: dict[str, Any] = {name: values[name] for name in selection.by}
        fresh |= dict.fromkeys((*COUNTS, "generating_tokens"), 0)
        fresh |= {"serving": 0.0, "evaluating": 0.0, "training": 0.0, "outside": dict.fromkeys(CHARGED, 0)}
        row = groups.setdefault(group, fresh)
        if isinstance(told, RunTime):
            row["training"] += told.training_s
        else:
            row["outside"] = {name: row["outside"][name] + getattr(told, name) for name in CHARGED}
    return [groups[group] for group in sorted(groups)][: selection.limit]


def _selected(told: Iterable[RunTime | EndpointCharge], selection: Selection) -> Iterator[RunTime | EndpointCharge]:
    wanted = {"project": selection.project, "key_id": selection.key, "adapter": selection.adapter}
    filters = {name: value for name, value in wanted.items() if value is not None}
    return (each for each in told if all(getattr(each, name) == value for name, value in filters.items()))


def cost_row(row: dict[str, Any], selection: Selection, prices: Prices) -> dict[str, Any]:
    """A row as the API shows it."""
    seconds = {name: row[name] for name in ("serving", "evaluating", "training")}
    spent_s = total(*seconds.values())
    outside = _outside(row["outside"])
    money = None
    if prices.device_hour is not None:
        parts = {name: None if value is None else prices.device(value) for name, value in seconds.items()}
        parts["outside"] = None if outside is None else outside["money"]
        money = parts | {"total": total(*parts.values())}
    return (
        place(row, selection, "cost")
        | {name: int(row[name]) for name in COUNTS}
        | {
            "seconds": {name: None if value is None else round(value, 6) for name, value in seconds.items()},
            "device_hours": None if spent_s is None else spent_s / SECONDS_AN_HOUR,
            "outside": outside,
            "money": money,
            "hosted": prices.hosted(row["generating_tokens"], row["completion_tokens"]),
        }
    )


def _outside(charged: dict[str, Any] | None) -> dict[str, Any] | None:
    """What endpoints outside charged, as the API shows it: an amount that is not known whole is not shown."""
    if charged is None:
        return None
    money = None if charged["unpriced"] else float(charged["money"])
    return {name: charged[name] for name in COUNTS} | {"money": money, "unpriced_requests": charged["unpriced"]}
