"""What a rung costs: measured time times the operator's prices."""

from __future__ import annotations

import pytest

from adapters.costs import Prices
from tests.unit.trainer.ladder.rungs_measured import QUESTIONS, right_at, scored
from trainer.ladder.costs import one_time, request_cost, rung_year

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
