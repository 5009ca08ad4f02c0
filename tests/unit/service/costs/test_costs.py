"""`GET /v1/costs`: measured time of requests and runs adds up, whoever asks and however it is grouped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.costs import Prices
from service.costs.schemas import CostPage
from tests.unit.service.access.clock import MIDNIGHT
from tests.unit.service.costs.costs_app import CostsApp

HOUR = MIDNIGHT + 10 * 3600


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[CostsApp]:
    async with CostsApp(tmp_path).open() as app:
        yield app


def by(page: dict[str, Any], *names: str) -> dict[Any, dict[str, Any]]:
    CostPage.model_validate(page)
    return {tuple(row[name] for name in names) if len(names) > 1 else row[names[0]]: row for row in page["data"]}


async def test_engine_time_of_callers_and_runs_and_device_time_of_runs_stand_apart(app: CostsApp) -> None:
    app.ask("key_a", 3)
    app.ask("key_c", 2)
    app.ask("key_run", 4, version=2)
    app.trainer.ran(HOUR, 50, version=2)
    page = await app.costs(group_by="version")
    rows = by(page, "adapter", "version")
    assert rows["voice", 1]["seconds"] == {"serving": 5, "evaluating": 0, "training": 0}
    assert rows["voice", 2]["seconds"] == {"serving": 0, "evaluating": 4, "training": 50}
    assert rows["voice", 2]["money"] == {"serving": 0, "evaluating": 4, "training": 50, "outside": 0, "total": 54}
    assert rows["voice", 1]["device_hours"] == pytest.approx(5 / 3600)
    assert rows["voice", 1]["hosted"] == pytest.approx(2 * (10 * 2 + 5 * 8) / 1e6)
    assert (page["currency"], page["runs"]) == ("EUR", {"available": True, "reason": None})


async def test_the_rows_and_the_gateways_own_requests_add_up_to_the_engines_busy_time(app: CostsApp) -> None:
    for key, seconds in (("key_a", 1), ("key_b", 2), ("key_c", 3), ("key_run", 4)):
        app.ask(key, seconds)
    with app.engine.own():
        app.clock.pass_s(5)
    app.clock.pass_s(100)
    for group_by in ("project", "key", "adapter", "version", "hour", ""):
        page = await app.costs(group_by=group_by)
        shares = sum(row["seconds"]["serving"] + row["seconds"]["evaluating"] for row in page["data"])
        engine = page["engine"]
        assert shares + engine["own_seconds"] == pytest.approx(engine["busy_seconds"]) == 15
        assert engine["idle_seconds"] == pytest.approx(100)
        assert (engine["idle_money"], engine["measured_since"]) == (pytest.approx(100), HOUR)


async def test_what_a_run_asks_counts_for_the_key_that_created_it(app: CostsApp) -> None:
    app.ask("key_a", 1)
    app.ask("key_run", 4)
    app.trainer.ran(HOUR, 9)
    rows = by(await app.costs(group_by="key"), "key")
    assert rows["key_a"]["seconds"] == {"serving": 1, "evaluating": 4, "training": 9}
    assert (list(rows), rows["key_a"]["key_name"]) == (["key_a"], "KEY_A")


async def test_a_key_that_is_no_admins_sees_its_own_requests_and_runs_alone(app: CostsApp) -> None:
    app.ask("key_a", 1)
    app.ask("key_b", 2)
    app.ask("key_c", 3)
    app.trainer.ran(HOUR, 9)
    app.trainer.ran(HOUR, 7, key="key_c", project="bolt")
    own = await app.costs("key_b")
    assert (own["data"][0]["seconds"], own["engine"]) == ({"serving": 2, "evaluating": 0, "training": 0}, None)
    assert (await app.costs("key_c"))["data"][0]["money"]["total"] == 10
    assert (await app.costs("key_b", project="bolt"))["data"] == []
    assert (await app.costs("key_b", key="key_a"))["data"] == []


async def test_a_trainer_that_is_down_leaves_a_gap_and_not_a_zero(app: CostsApp) -> None:
    app.ask("key_a", 1)
    app.trainer.ran(HOUR, 9)
    app.trainer.reachable = False
    page = await app.costs()
    assert page["runs"] == {"available": False, "reason": "the trainer is not reachable"}
    (row,) = page["data"]
    assert (row["seconds"]["serving"], row["seconds"]["training"], row["device_hours"]) == (1, None, None)
    assert (row["money"]["serving"], row["money"]["total"]) == (1, None)
    assert (row["outside"], row["money"]["outside"]) == (None, None)


async def test_what_endpoints_outside_charge_is_a_cost_of_its_own(app: CostsApp) -> None:
    app.ask("key_a", 3)
    app.trainer.ran(HOUR, 50, version=2)
    app.trainer.charged(HOUR, 0.5, version=2)
    app.trainer.charged(HOUR, 0.25, version=2, endpoint="another")
    app.trainer.charged(HOUR, 2.0, run=None, adapter="")
    rows = by(await app.costs(group_by="version"), "adapter", "version")
    assert rows["voice", 2]["outside"] == {
        "requests": 6,
        "prompt_tokens": 60,
        "completion_tokens": 30,
        "money": 0.75,
        "unpriced_requests": 0,
    }
    assert rows["voice", 2]["money"] == {"serving": 0, "evaluating": 0, "training": 50, "outside": 0.75, "total": 50.75}
    assert (rows["voice", 2]["requests"], rows["voice", 2]["prompt_tokens"]) == (0, 0)
    assert (rows["voice", 1]["outside"]["money"], rows["voice", 1]["money"]["total"]) == (0, 3)
    assert (rows[None, None]["outside"]["money"], rows[None, None]["money"]["total"]) == (2, 2)
    (acme,) = (await app.costs(group_by="project"))["data"]
    assert (acme["outside"]["money"], acme["money"]["total"]) == (2.75, 55.75)


async def test_a_charge_that_is_not_known_is_no_zero(app: CostsApp) -> None:
    app.trainer.charged(HOUR, 0.5)
    app.trainer.charged(HOUR, 0.0, unpriced=2)
    (row,) = (await app.costs())["data"]
    assert (row["outside"]["money"], row["outside"]["unpriced_requests"]) == (None, 2)
    assert (row["money"]["training"], row["money"]["outside"], row["money"]["total"]) == (0, None, None)


async def test_charges_are_seen_by_the_key_that_they_are_on_the_bill_of(app: CostsApp) -> None:
    app.trainer.charged(HOUR, 0.5)
    app.trainer.charged(HOUR, 2.0, key="key_b")
    app.trainer.charged(HOUR, 4.0, key="key_c", project="bolt")
    seen = {
        key: [row["outside"]["money"] for row in (await app.costs(key))["data"]] for key in ("key_a", "key_b", "admin")
    }
    assert seen == {"key_a": [0.5], "key_b": [2.0], "admin": [6.5]}


async def test_without_a_price_of_the_device_the_charges_of_others_are_known(tmp_path: Path) -> None:
    async with CostsApp(tmp_path, Prices()).open() as app:
        app.trainer.charged(HOUR, 0.5)
        (row,) = (await app.costs())["data"]
    assert (row["outside"]["money"], row["money"]) == (0.5, None)


async def test_without_a_price_there_is_time_and_no_money(tmp_path: Path) -> None:
    async with CostsApp(tmp_path, Prices()).open() as app:
        app.ask("key_a", 3)
        page = await app.costs()
    (row,) = page["data"]
    assert (row["seconds"]["serving"], row["money"], row["hosted"]) == (3, None, None)
    assert page["engine"]["busy_money"] is None
    assert set(page["prices"].values()) == {None}


async def test_pages_hold_every_group_once_with_runs_that_asked_nothing(app: CostsApp) -> None:
    for adapter in ("b", "d", "f"):
        app.ask("key_a", 1, adapter=adapter)
    for adapter in ("a", "c", "d", "g"):
        app.trainer.ran(HOUR, 2, adapter=adapter)
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await app.costs(limit=2, **after)
        seen += [row["adapter"] for row in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["data"][-1]["id"]}
    assert seen == ["a", "b", "c", "d", "f", "g"]
    assert by(await app.costs(), "adapter")["d"]["seconds"] == {"serving": 1, "evaluating": 0, "training": 2}


async def test_hours_of_runs_fall_into_the_buckets_that_requests_fall_into(app: CostsApp) -> None:
    app.ask("key_a", 1)
    app.trainer.ran(HOUR - 3600, 5)
    app.trainer.ran(HOUR, 7)
    hours = by(await app.costs(group_by="hour"), "start")
    assert {start: row["seconds"]["training"] for start, row in hours.items()} == {HOUR - 3600: 5, HOUR: 7}
    days = by(await app.costs(group_by="hour", bucket="day"), "start")
    assert days[MIDNIGHT]["seconds"] == {"serving": 1, "evaluating": 0, "training": 12}


async def test_a_period_before_anything_is_empty(app: CostsApp) -> None:
    app.ask("key_a", 1)
    app.trainer.ran(HOUR, 7)
    page = await app.costs(start=HOUR - 7200, end=HOUR - 3600)
    assert (page["data"], page["engine"]["busy_seconds"]) == ([], 0)


@pytest.mark.parametrize("query", [{"start": 9, "end": 3}, {"group_by": "colour"}, {"after": "!"}])
async def test_a_query_that_makes_no_sense_names_the_field(app: CostsApp, query: dict[str, Any]) -> None:
    answer = await app.request("GET", "/v1/costs", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))
