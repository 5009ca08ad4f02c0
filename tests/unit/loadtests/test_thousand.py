"""The experiment with a thousand adapters: who is asked for what, and what the figures say."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from loadtests import chart
from loadtests.support import Timing
from loadtests.thousand.__main__ import Found, Plan, drawing, table
from loadtests.thousand.workload import FIRST_TOKEN_S, TOKENS, WORDS, Outcome, outcome, trace


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_spread_that_were_asked_for(cv: float) -> None:
    requests = trace(10, 40_000, rate=5.0, cv=cv)
    gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(requests)]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.1)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.1)


def test_all_sides_get_the_same_requests_and_the_first_adapters_most_of_them() -> None:
    requests = trace(1000, 5000)
    assert requests == trace(1000, 5000)
    drawn = Counter(request.adapter for request in requests)
    assert drawn[0] > 1.5 * drawn[1] > 1.5 * 1.5 * drawn[3]
    assert len(drawn) > 400
    assert {request.at_s for request in requests} == {0.0}, "a closed loop has no times"
    assert {min(TOKENS), max(TOKENS)} <= {request.tokens for request in requests}
    assert all(WORDS[0] <= len(request.text.split()) <= WORDS[1] for request in requests)


def timing(sent: float, first: float, end: float, tokens: int, status: int = 200) -> Timing:
    return Timing("voice", sent, first, end, tokens, status)


def test_a_refused_request_has_no_tokens_and_missed_its_objective() -> None:
    late = FIRST_TOKEN_S + 1
    found = outcome([timing(0, 1, 2, 10), timing(1, 1 + late, 10, 20), timing(2, 0, 3, 0, status=503)])
    assert found == Outcome(3.0, 1.0, late, 1 / 3, 1)


def outcomes(*speeds: float) -> Found:
    of = {"arrivals": Outcome(1.0, 0.2, 0.9, 1.0, 0)}
    return {10**at: {"saturated": Outcome(speed, 0.1, 0.5, 1.0, at), **of} for at, speed in enumerate(speeds)}


def test_the_table_compares_each_side_with_its_own_one_adapter() -> None:
    text = table({"Hatrack": outcomes(200.0, 180.0), "PEFT": outcomes(20.0, 5.0)})
    assert "| 10 | Hatrack | 180 | 0.90 | 0.20, 0.90 s | 100% | 1 |" in text
    assert "| 10 | PEFT | 5 | 0.25 |" in text


def test_the_drawing_has_a_bar_for_each_side_as_long_as_its_value() -> None:
    drawn = drawing({"Hatrack": outcomes(200.0, 180.0), "PEFT": outcomes(20.0, 90.0)}, "a <note>")
    root = ElementTree.fromstring(drawn)  # noqa: S314 (our own text)
    texts = [element.text for element in root.iter() if element.text]
    assert "a <note>" in texts
    assert texts.count("Hatrack") == texts.count("PEFT") == 4
    widths = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths[5] / widths[4] == pytest.approx(0.5, abs=0.01), "180 beside 90"
    assert widths[1] / widths[0] == pytest.approx(0.1, abs=0.01), "200 beside 20"


def test_what_was_not_measured_has_no_bar() -> None:
    drawn = chart.draw("t", "n", [chart.Panel("p", True, [("a", None), ("b", 0.0), ("c", 3.0)])], logarithmic=True)
    assert "not measured" in drawn


def test_arrivals_come_at_a_part_of_what_one_adapter_reached() -> None:
    plan = Plan(100, 1.0)
    mean = statistics.mean(request.tokens for request in plan.saturated(1))
    plan.calibrate(Outcome(10 * mean, 0, 0, 1, 0))
    assert plan.rate == pytest.approx(7.0)
    plan.calibrate(Outcome(99 * mean, 0, 0, 1, 0))
    assert plan.rate == pytest.approx(7.0), "the same for every side"
    assert len(plan.arrivals(10)) == 100
