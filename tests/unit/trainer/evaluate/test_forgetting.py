from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from tests.unit.trainer.evaluate.worlds import QUICK, seeded
from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Arm
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.forgetting import (
    Budget,
    ChoiceItem,
    SuiteItems,
    SuiteMeasurement,
    TextItem,
    at_chance,
    compare_measurements,
    general_suite,
    likeliest,
    measure,
    read_suite,
)
from trainer.evaluate.likelihood import HttpScorer, TokenLogprobs


def suite(count: int = 80, texts: int = 12) -> SuiteItems:
    return SuiteItems(
        name="tiny",
        choices=tuple(
            ChoiceItem(
                kind="choice",
                id=f"c{at}",
                area=f"area {at % 2}",
                stem=f"Stem {at}",
                choices=("a", "b", "c", "d"),
                answer=0,
            )
            for at in range(count)
        ),
        texts=tuple(TextItem(kind="text", id=f"t{at}", area="news", text=f"Some text {at}.") for at in range(texts)),
    )


def measured(label: str, right: int, rise: float = 0.0, count: int = 80, texts: int = 12) -> SuiteMeasurement:
    random = seeded(5)
    nats = tuple(
        float(value) for value in random.uniform(2.5, 3.5, texts) + rise + random.normal(0, 0.01, texts) * (rise != 0)
    )
    return SuiteMeasurement(label=label, suite="tiny", right=(True,) * right + (False,) * (count - right), nats=nats)


def test_the_general_suite_is_whole() -> None:
    found = general_suite()
    assert len(found.choices) >= 60
    assert len(found.texts) >= 20
    assert found.chance == 0.25
    assert {item.area for item in found.choices} == {"knowledge", "commonsense", "language"}
    assert len({item.area for item in found.texts}) >= 8
    assert len({item.stem for item in found.choices}) == len(found.choices)
    places = [item.answer for item in found.choices]
    assert all(places.count(place) >= len(places) / 8 for place in range(4))


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '{"kind": "choice", "id": "1", "area": "a", "stem": "s", "choices": ["x", "y"], "answer": 2}',
        '{"kind": "choice", "id": "1", "area": "a", "stem": "s", "choices": ["x", "x"], "answer": 0}',
        '{"kind": "text", "id": "t", "area": "a", "text": ""}',
        '{"kind": "tune", "id": "t"}',
    ],
)
def test_a_suite_with_a_wrong_line_is_refused(line: str) -> None:
    with pytest.raises(EvaluationInvalid, match="line 1"):
        read_suite("own", line)


def test_a_suite_needs_both_kinds_and_unique_ids() -> None:
    text = json.dumps({"kind": "text", "id": "t", "area": "a", "text": "x y"})
    with pytest.raises(EvaluationInvalid, match="must be unique"):
        read_suite("own", f"{text}\n{text}\n")
    with pytest.raises(EvaluationInvalid, match="needs"):
        read_suite("own", f"{text}\n")


def test_the_likeliest_choice_is_that_a_byte() -> None:
    item = ChoiceItem(kind="choice", id="1", area="a", stem="s", choices=("ab", "abcdefgh"), answer=1)
    stem = TokenLogprobs(tokens=(1, 2), logprobs=(-9.0, -9.0))
    short = TokenLogprobs(tokens=(1, 2, 3), logprobs=(-9.0, -9.0, -1.0))
    long = TokenLogprobs(tokens=(1, 2, 4, 5), logprobs=(-9.0, -9.0, -1.0, -1.0))
    assert likeliest(item, (stem, short, long)) == 1
    longer = TokenLogprobs(tokens=(1, 2, 4, 5), logprobs=(-9.0, -9.0, -2.0, -2.1))
    assert likeliest(item, (stem, short, longer)) == 0


async def test_an_arm_is_measured_through_the_gateway(gateway: Gateway, tmp_path: Path) -> None:
    content = [
        {"kind": "choice", "id": "1", "area": "a", "stem": "The sky is", "choices": ["blue", "mice"], "answer": 0},
        {"kind": "choice", "id": "2", "area": "a", "stem": "Grass is", "choices": ["loud", "tall"], "answer": 1},
        {"kind": "text", "id": "3", "area": "b", "text": "One two."},
        {"kind": "text", "id": "4", "area": "b", "text": "One three four."},
    ]
    own = read_suite("own", "\n".join(map(json.dumps, content)))
    gateway.likely = {"voice@3": {"blue", "loud", "two."}}
    scorer = HttpScorer(Endpoint(gateway.url, SecretStr(KEY)), tmp_path / "scores.jsonl")
    found = await measure(Arm(label="tuned", model="voice@3"), own, scorer)
    assert found.right == (True, False)
    assert found.nats == pytest.approx((0.1, 5.0))
    assert len(gateway.requests) == 4


def test_nothing_lost_is_kept_and_what_changed_is_named() -> None:
    found = compare_measurements(suite(), measured("base", 70), measured("tuned", 68), Budget(), QUICK)
    assert found.state == "kept"
    assert found.accuracy.loss == pytest.approx(2 / 80)
    assert found.accuracy.low < found.accuracy.loss < found.accuracy.high
    assert (found.lost, found.won) == (("c68", "c69"), ())
    assert sum(area.base for area in found.areas) == 70
    assert (found.perplexity.loss, found.perplexity.low, found.perplexity.high) == (0, 0, 0)


def test_a_real_loss_above_the_budget_breaks_it() -> None:
    assert (
        compare_measurements(suite(), measured("base", 70), measured("tuned", 55), Budget(), QUICK).accuracy.state
        == "broken"
    )
    worse = compare_measurements(suite(), measured("base", 70), measured("tuned", 70, rise=0.9), Budget(), QUICK)
    assert (worse.perplexity.state, worse.accuracy.state, worse.state) == ("broken", "kept", "broken")
    assert worse.perplexity.loss == pytest.approx(math.expm1(0.9), rel=0.02)


def test_a_loss_above_the_budget_that_may_be_chance_is_open() -> None:
    base, tuned = measured("base", 20, count=24), measured("tuned", 17, count=24)
    found = compare_measurements(suite(24), base, tuned, Budget(), QUICK)
    assert found.accuracy.loss > 0.05
    assert found.accuracy.low < 0
    assert (found.accuracy.state, found.state) == ("open", "open")


def test_where_the_base_is_at_chance_the_suite_is_silent() -> None:
    found = compare_measurements(suite(), measured("base", 21), measured("tuned", 0), Budget(), QUICK)
    assert (found.accuracy.state, found.state) == ("silent", "kept")
    forgot = compare_measurements(suite(), measured("base", 21), measured("tuned", 0, rise=1.0), Budget(), QUICK)
    assert forgot.state == "broken"
    assert [area.at_chance for area in found.areas] == [True, True]


def test_chance_is_what_an_exact_test_calls_so() -> None:
    items = suite(40).choices
    assert at_chance(items, [True] * 15 + [False] * 25, QUICK)
    assert not at_chance(items, [True] * 20 + [False] * 20, QUICK)


def test_a_broken_model_has_a_perplexity_that_is_a_number() -> None:
    found = compare_measurements(suite(), measured("base", 70), measured("tuned", 0, rise=9000.0), Budget(), QUICK)
    assert math.isfinite(found.perplexity.candidate)
    assert found.state == "broken"
    assert json.loads(found.model_dump_json())["perplexity"]["state"] == "broken"


def test_measurements_of_another_suite_are_refused() -> None:
    with pytest.raises(EvaluationInvalid):
        compare_measurements(suite(), measured("base", 10, count=20), measured("tuned", 70), Budget(), QUICK)
