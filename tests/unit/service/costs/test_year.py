"""`GET /v1/costs/year`: measured requests and the last training, scaled to a year, with what is not known left open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.costs import Prices, Upkeep, year_cost
from adapters.protocol.costs import LastTraining
from service.costs.schemas import YearAnswer
from service.registry.split import Split
from tests.unit.service.access.clock import MIDNIGHT
from tests.unit.service.costs.costs_app import PRICES, CostsApp

HOUR = MIDNIGHT + 10 * 3600
DAY_S = 86_400
LAST = LastTraining(
    run="ftjob-1",
    run_key_id="key_run",
    version=2,
    finished_at=HOUR,
    training_s=1_000,
    judging_s=150,
    examples=600,
    trained_tokens=9_000,
)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[CostsApp]:
    async with CostsApp(tmp_path).open() as app:
        yield app


async def year(app: CostsApp, key: str = "key_a", **params: Any) -> dict[str, Any]:
    answer = await app.request("GET", "/v1/costs/year", key, params={"adapter": "voice"} | params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    YearAnswer.model_validate(found)
    return found


async def two_days(app: CostsApp) -> None:
    """A prompt's version and a LoRA's, each asked once a day for two days; a judging of 100 s beside."""
    app.publish("acme", False, True)
    app.trainer.last = LAST
    for _ in range(2):
        app.ask("key_a", 4, version=1, tokens=1_010)
        app.ask("key_a", 2, version=2, tokens=10)
        app.ask("key_run", 50, version=2)
        await app.account.flush()
        app.clock.pass_s(DAY_S - 56)


async def test_traffic_is_scaled_and_every_part_of_the_year_is_priced(app: CostsApp) -> None:
    await two_days(app)
    found = await year(app)
    assert (found["traffic"]["source"], found["traffic"]["requests"]) == ("usage", 4)
    assert found["traffic"]["requests_per_year"] == 2 * 365
    prompt, lora = found["versions"]
    assert (prompt["has_weights"], lora["has_weights"], lora["live"]) == (False, True, True)
    assert (prompt["request"]["engine_seconds"], lora["request"]["engine_seconds"]) == (4, 2)
    revalidations = 365 / 90
    assert lora["year"]["requests"] == pytest.approx(730 * 2)
    assert lora["year"]["retraining"] == pytest.approx(4 * 1_000)
    assert lora["year"]["judging"] == pytest.approx((revalidations + 4) * 100), "the engine's time, not the worker's"
    assert lora["year"]["data"] == pytest.approx(4 * 0.1 * 600 / 30 * 60)
    assert lora["year"]["checks"] == pytest.approx(revalidations * 0.05 * 600 / 60 * 60)
    parts = ("requests", "retraining", "judging", "data", "checks")
    assert lora["year"]["total"] == pytest.approx(sum(lora["year"][part] for part in parts))
    assert lora["year"]["rule_of_thumb"] == [3_000, 5_000]
    assert (prompt["year"]["retraining"], prompt["year"]["data"], prompt["year"]["rule_of_thumb"]) == (0, 0, None)


async def test_every_version_of_a_split_is_live(app: CostsApp) -> None:
    app.publish("acme", False, True, True, live=Split(((1, 90), (3, 10))))
    assert [version["live"] for version in (await year(app))["versions"]] == [True, False, True]


async def test_the_long_prompt_is_told_in_tokens_of_a_year(app: CostsApp) -> None:
    await two_days(app)
    found = (await year(app))["long_prompt"]
    assert (found["source"], found["tokens_per_request"], found["tokens_per_year"]) == ("usage", 1_000, 730_000)
    assert found["hosted"] == pytest.approx(730_000 * 2 / 1e6)
    given = (await year(app, prompt_tokens=50, requests_per_day=10))["long_prompt"]
    assert (given["source"], given["tokens_per_year"]) == ("given", 3650 * 50)


async def test_traffic_may_be_given_or_the_settings(app: CostsApp) -> None:
    app.publish("acme", True)
    assert (await year(app))["traffic"] == {
        "source": "setting", "requests_per_year": 120_000, "days": 0, "requests": 0
    }  # fmt: skip
    assert (await year(app, requests_per_day=0.5))["traffic"]["requests_per_year"] == 182
    app.ask("key_a", 1)
    assert (await year(app))["traffic"]["requests_per_year"] == 365, "a first request is not scaled by its minutes"


async def test_what_was_never_measured_is_left_open(app: CostsApp) -> None:
    app.publish("acme", False, True)
    prompt, lora = (await year(app))["versions"]
    for version in (prompt, lora):
        assert (version["request"], version["tokens"]) == (None, None)
        assert (version["year"]["requests"], version["year"]["total"]) == (None, None)
    assert (prompt["year"]["retraining"], lora["year"]["retraining"]) == (0, None)
    app.trainer.reachable = False
    down = await year(app)
    assert down["runs"] == {"available": False, "reason": "the trainer is not reachable"}
    assert down["training"] is None


async def test_a_key_sees_its_own_traffic_and_its_own_adapters(app: CostsApp) -> None:
    await two_days(app)
    assert (await year(app, "key_b"))["traffic"]["source"] == "setting"
    for key in ("key_c", "admin"):  # of other projects
        answer = await app.request("GET", "/v1/costs/year", key, params={"adapter": "voice"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_without_prices_a_year_has_hours() -> None:
    upkeep = Upkeep(engine_seconds=1, training_seconds=3600, judging_seconds=0, examples=0, requests_per_year=3600)
    found = year_cost(upkeep, Prices(retrainings_per_year=2))
    assert (found.device_hours, found.requests, found.total) == (3, None, None)


def test_a_price_of_nothing_is_not_no_price() -> None:
    free = PRICES.model_copy(update={"device_hour": 0.0, "person_hour": 0.0})
    upkeep = Upkeep(engine_seconds=1, training_seconds=1, judging_seconds=1, examples=9, requests_per_year=5)
    assert year_cost(upkeep, free).total == 0
    assert year_cost(upkeep, Prices()).total is None


def test_ladders_of_an_earlier_release_wrote_nothing_where_there_was_no_price() -> None:
    old = {"device_hour": 0.0, "person_hour": 3.0, "requests_per_month": 5, "retrainings_per_year": 4}
    assert Prices.model_validate(old).device_hour is None
    assert Prices.model_validate(old).person_hour == 3
    assert Prices.model_validate_json(PRICES.model_copy(update={"device_hour": 0.0}).model_dump_json()).device_hour == 0
