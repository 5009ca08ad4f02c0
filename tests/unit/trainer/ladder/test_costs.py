"""What a rung costs: measured time times the operator's prices."""

from __future__ import annotations

import pytest

from adapters.costs import Prices, YearCost
from tests.unit.trainer.ladder.rungs_measured import QUESTIONS, right_at, rows, scored
from trainer.ladder.advice import Advice
from trainer.ladder.costs import RequestCost, one_time, pays_from, request_cost, rung_year
from trainer.ladder.reporting import ReportedRung, with_cheaper
from trainer.ladder.spec import RungKey

PRICES = Prices(
    device_hour=3.6, person_hour=60.0, requests_per_month=1_000, retrainings_per_year=2, revalidations_per_year=4
)


def test_the_evaluations_time_is_shared_out_by_the_time_that_requests_spent_in_the_engine() -> None:
    scores = scored({"base": right_at(0.5, 1), "examples": right_at(0.5, 2)}, seconds={"base": 1.0, "examples": 3.0})
    base, examples = (request_cost(scores, arm, PRICES) for arm in scores.arms)
    assert base.engine_seconds == pytest.approx(60 * 0.25 / QUESTIONS)
    assert examples.engine_seconds == pytest.approx(3 * base.engine_seconds)
    assert QUESTIONS * (base.engine_seconds + examples.engine_seconds) == pytest.approx(scores.wall_seconds)
    assert base.per_thousand == pytest.approx(1_000 * base.engine_seconds * 3.6 / 3600)


def test_without_a_price_there_is_time_but_no_money() -> None:
    scores = scored({"base": right_at(0.5, 1)})
    cost = request_cost(scores, scores.arms[0], Prices())
    assert cost.engine_seconds > 0
    assert cost.per_thousand is None
    assert cost.hosted_per_thousand is None


def test_a_hosted_models_price_counts_the_same_tokens() -> None:
    scores = scored({"base": right_at(0.5, 1)})
    cost = request_cost(scores, scores.arms[0], Prices(hosted_input=2.0, hosted_output=8.0))
    assert cost.hosted_per_thousand == pytest.approx(1_000 * (100 * 2 + 10 * 8) / 1e6)


def test_a_year_of_a_lora_is_traffic_retraining_judging_data_and_checks() -> None:
    scores = scored({"lora": right_at(0.5, 1)})
    request = request_cost(scores, scores.arms[0], PRICES)
    year = rung_year(
        request, PRICES, training_seconds=1_000, judging_seconds=100, examples=600, requests_per_month=None
    )
    assert year.requests == pytest.approx(12_000 * request.engine_seconds * 0.001)
    assert year.retraining == pytest.approx(2 * 1.0)
    assert year.judging == pytest.approx((4 + 2) * 0.1)
    assert year.data == pytest.approx(2 * 60 / 30 * 60)
    assert year.checks == pytest.approx(4 * 30 / 60 * 60)
    assert year.total == pytest.approx(0.001 * 12_000 * request.engine_seconds + 2 + 0.6 + 240 + 120)
    assert year.rule_of_thumb == pytest.approx((3.0, 5.0))


def test_a_prompt_is_not_retrained() -> None:
    scores = scored({"instructions": right_at(0.5, 1)})
    request = request_cost(scores, scores.arms[0], PRICES)
    year = rung_year(request, PRICES, training_seconds=0, judging_seconds=100, examples=600, requests_per_month=5)
    assert (year.retraining, year.data, year.rule_of_thumb) == (0.0, 0.0, None)
    assert year.requests_per_year == 60


def test_what_a_rung_cost_once() -> None:
    assert one_time(7_200, PRICES).money == pytest.approx(7.2)


def of_a_request(seconds: float, prices: Prices) -> RequestCost:
    return RequestCost(
        prompt_tokens=1,
        completion_tokens=1,
        engine_seconds=seconds,
        per_thousand=prices.device(1_000 * seconds),
        hosted_per_thousand=None,
    )


def year_of(request: RequestCost, prices: Prices, *, training_seconds: float, traffic: int) -> YearCost:
    return rung_year(
        request,
        prices,
        training_seconds=training_seconds,
        judging_seconds=100,
        examples=600,
        requests_per_month=traffic,
    )


@pytest.mark.parametrize("prices", [PRICES, Prices()], ids=["in money", "in device time"])
def test_a_lora_pays_from_the_traffic_on_at_which_both_years_cost_the_same(prices: Prices) -> None:
    prompt, lora = of_a_request(0.5, prices), of_a_request(0.1, prices)
    start = pays_from(
        (prompt, year_of(prompt, prices, training_seconds=0, traffic=1_000)),
        (lora, year_of(lora, prices, training_seconds=1_000, traffic=1_000)),
    )
    assert start is not None
    at_start = [
        year_of(prompt, prices, training_seconds=0, traffic=round(start)),
        year_of(lora, prices, training_seconds=1_000, traffic=round(start)),
    ]
    costs = [each.device_hours if each.total is None else each.total for each in at_start]
    assert costs[0] == pytest.approx(costs[1], rel=0.01)
    assert pays_from((lora, at_start[1]), (prompt, at_start[0])) is None, "a slower request never pays"


@pytest.mark.parametrize(
    ("traffic", "lora_share", "held_back", "sentence", "would_change"),
    [
        (100_000, 0.85, (), "At 100,000 requests a month the LoRA costs less in a year (", ""),
        (
            1_000,
            0.85,
            (),
            "",
            "requests a month on (here 1,000) the LoRA costs less in a year than",
        ),
        (1, 0.85, (), "", ""),
        (100_000, 0.5, (), "", ""),
        (100_000, 0.85, ("lora",), "", ""),
    ],
    ids=["at this traffic", "at more", "at far more, of which no word is said", "it is worse", "it may not go live"],
)
def test_the_advice_names_a_rung_that_costs_less_in_a_year(
    traffic: int, lora_share: float, held_back: tuple[RungKey, ...], sentence: str, would_change: str
) -> None:
    prices = Prices(device_hour=3.6, requests_per_month=traffic, retrainings_per_year=2)
    measured = rows(scored({"examples": right_at(0.85, 1), "lora": right_at(lora_share, 1)}))
    requests = {"examples": of_a_request(0.5, prices), "lora": of_a_request(0.1, prices)}
    rungs = [
        ReportedRung.model_construct(
            key=key,
            request=request,
            year=year_of(request, prices, training_seconds=5_000 * (key == "lora"), traffic=traffic),
        )
        for key, request in requests.items()
    ]
    advice = Advice(word="examples", rung="examples", sentence="Do not fine-tune.")
    shown = with_cheaper(advice, measured, rungs, traffic, set(held_back))
    assert shown.sentence.startswith("Do not fine-tune.")
    assert (sentence in shown.sentence) if sentence else (shown.sentence == advice.sentence)
    assert (would_change in shown.would_change[0]) if would_change else (shown.would_change == ())
