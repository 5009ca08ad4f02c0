"""``GET /v1/costs/year``: what an adapter's versions cost in a year, at measured or expected traffic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from adapters.costs import DAYS_A_YEAR, MONTHS, Prices, Upkeep, year_cost
from adapters.protocol.costs import LastTraining
from service.access.caller import Caller, Scope
from service.costs import records
from service.costs.records import Traffic
from service.costs.runs import Measured
from service.errors import HatrackError, ModelNotFound
from service.registry.catalog import AdapterEntry, Catalog
from service.registry.split import versions_of
from service.usage import engine_time
from service.usage.account import DAY_S
from service.usage.records import Selection

LOOK_BACK_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class YearQuery:
    """A question about an adapter's year.

    ``requests_per_day``: None takes the traffic that was measured. ``prompt_tokens``: those that a long prompt would
    add to each request; None takes what was measured of versions without weights.
    """

    adapter: str
    requests_per_day: float | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """An adapter's last training, with the engine's time of its judging, s; None and why, if it cannot be had."""

    last: LastTraining | None
    judging_s: float | None = None
    reason: str | None = None


class YearReport:
    """Answers what a year of an adapter costs."""

    def __init__(self, measured: Measured, catalog: Catalog) -> None:
        self._measured = measured
        self._catalog = catalog

    async def read(self, caller: Caller, query: YearQuery) -> dict[str, Any]:
        """The year, as ``service.costs.schemas.YearAnswer``. A key that is no admin's has its own traffic counted.

        Raises:
            ModelNotFound: The adapter does not exist for this caller.
            HatrackError: The database cannot be written.
        """
        entry = self._catalog.snapshot.adapters.get((caller.project, query.adapter))
        if entry is None or not caller.may_use(query.adapter):
            raise ModelNotFound(f"the adapter `{query.adapter[:100]}` does not exist", param="adapter")
        measured = self._measured
        await measured.account.flush()
        now = int(measured.wall())
        selection = Selection(
            start=now - LOOK_BACK_DAYS * DAY_S,
            end=now + 1,
            width_s=DAY_S,
            by=("version",),
            project=caller.project,
            key=None if caller.may(Scope.ADMIN) else caller.key_id,
            adapter=query.adapter,
        )
        rows = await measured.database.run(partial(_traffic, selection=selection), read_only=True)
        training = await self._training(caller.project, query.adapter)
        traffic = measured_traffic(rows, query.requests_per_day, now, measured.prices)
        versions = [
            self._version(entry, number, rows.get(number), training, traffic["requests_per_year"])
            for number in sorted(entry.versions)
        ]
        prices = measured.prices
        return {
            "object": "cost.year",
            "adapter": query.adapter,
            "currency": prices.currency,
            "prices": prices.model_dump(include={"device_hour", "hosted_input", "hosted_output", "person_hour"}),
            "rhythm": prices.model_dump(include={"retrainings_per_year", "revalidations_per_year", "checked_share"}),
            "traffic": traffic,
            "training": _shown_training(training),
            "runs": {"available": training.reason is None, "reason": training.reason},
            "versions": versions,
            "long_prompt": long_prompt(versions, query.prompt_tokens, traffic["requests_per_year"], prices),
        }

    async def _training(self, project: str, adapter: str) -> Training:
        try:
            last = await self._measured.trainer.last_training(project, adapter)
        except HatrackError as error:
            return Training(None, reason=error.message)
        if last is None:
            return Training(None)
        judging_s = 0.0
        if last.run_key_id is not None:
            judging_s = await self._measured.database.run(
                partial(records.engine_seconds_of_key, key_id=last.run_key_id)
            )
        # judged before the engine's time was measured: the time for which the worker waited for it is an upper bound
        return Training(last, judging_s or last.judging_s or None)

    def _version(
        self, entry: AdapterEntry, number: int, row: Traffic | None, training: Training, requests_per_year: int
    ) -> dict[str, Any]:
        """One version's request, tokens and year."""
        has_weights = entry.versions[number].digest is not None
        last = training.last
        request = None if row is None or not row.requests else _request(row)
        upkeep = Upkeep(
            engine_seconds=None if request is None else request["engine_seconds"],
            training_seconds=0.0 if not has_weights else None if last is None else last.training_s,
            judging_seconds=training.judging_s,
            examples=None if last is None else last.examples,
            requests_per_year=requests_per_year,
        )
        live = entry.aliases.get("live")
        return {
            "version": number,
            "name": f"{entry.name}@{number}",
            "has_weights": has_weights,
            "live": live is not None and number in versions_of(live),
            "request": request,
            "tokens": None if request is None else self._tokens(request, requests_per_year),
            "year": year_cost(upkeep, self._measured.prices).model_dump(mode="json"),
        }

    def _tokens(self, request: dict[str, Any], requests_per_year: int) -> dict[str, Any]:
        prompt, completion = (requests_per_year * request[name] for name in ("prompt_tokens", "completion_tokens"))
        return {
            "prompt": round(prompt),
            "completion": round(completion),
            "hosted": self._measured.prices.hosted(prompt, completion),
        }


def _traffic(db: sa.Connection, selection: Selection) -> dict[int, Traffic]:
    since = engine_time.measured_since(db)
    measured = selection.end if since is None else since
    return {row.version: row for row in records.traffic(db, selection, measured)}


def _request(row: Traffic) -> dict[str, Any]:
    """The mean request to a version."""
    return {
        "requests": row.requests,
        "prompt_tokens": row.prompt_tokens / row.requests,
        "completion_tokens": row.completion_tokens / row.requests,
        "engine_seconds": row.engine_s / row.measured_requests if row.measured_requests else None,
    }


def measured_traffic(
    rows: dict[int, Traffic], requests_per_day: float | None, now: int, prices: Prices
) -> dict[str, Any]:
    """Requests of a year: as given; else those of the last 30 days, or since the first, scaled; else the setting."""
    requests = sum(row.requests for row in rows.values())
    days = max(1.0, (now - min((row.first_hour for row in rows.values()), default=now)) / DAY_S)
    told = {"days": days if requests else 0.0, "requests": requests}
    if requests_per_day is not None:
        return {"source": "given", "requests_per_year": round(DAYS_A_YEAR * requests_per_day)} | told
    if requests:
        return {"source": "usage", "requests_per_year": round(DAYS_A_YEAR * requests / days)} | told
    return {"source": "setting", "requests_per_year": MONTHS * prices.requests_per_month} | told


def long_prompt(
    versions: list[dict[str, Any]], given: int | None, requests_per_year: int, prices: Prices
) -> dict[str, Any] | None:
    """The tokens of a year that a long prompt takes and weights do not: as given, or the difference between the mean
    prompts of the longest version without weights and of the shortest with weights; None if neither is known."""
    source = "given"
    tokens: float | None = given
    if tokens is None:
        means: dict[bool, list[float]] = {True: [], False: []}
        for version in versions:
            if version["request"] is not None:
                means[version["has_weights"]].append(version["request"]["prompt_tokens"])
        if not (means[True] and means[False]):
            return None
        source, tokens = "usage", max(0.0, max(means[False]) - min(means[True]))
    total = requests_per_year * tokens
    hosted = None if prices.hosted_input is None else total * prices.hosted_input / 1e6
    return {"source": source, "tokens_per_request": tokens, "tokens_per_year": round(total), "hosted": hosted}


def _shown_training(training: Training) -> dict[str, Any] | None:
    last = training.last
    if last is None:
        return None
    return {
        "job": last.run,
        "version": last.version,
        "finished_at": last.finished_at,
        "seconds": last.training_s,
        "judging_seconds": training.judging_s,
        "examples": last.examples,
    }
