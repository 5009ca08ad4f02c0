from __future__ import annotations

import pytest

from tests.unit.trainer.evaluate.worlds import QUICK
from trainer.evaluate.forgetting import Budget
from trainer.evaluate.spec import SuiteResult
from trainer.evaluate.statistics.paired import tango_interval
from trainer.evaluate.suites.accuracy import accuracy_result
from trainer.evaluate.verdict import Rules


def found(before: int, after: int, count: int = 200, chance: float = 0.25, budget: float = 0.05) -> SuiteResult:
    rules = Rules(method=QUICK, budget=Budget(accuracy=budget, perplexity=0.25))
    ids = [str(at) for at in range(count)]
    rows = [[at < right for at in range(count)] for right in (before, after)]
    return accuracy_result("quiz", "200 questions", ids, *rows, chance=chance, rules=rules)


def test_a_loss_is_reported_with_tangos_interval_and_the_lost_questions() -> None:
    result = found(150, 120)
    low, high = tango_interval(30, 0, 200, 0.90)
    assert result.numbers["accuracy"] == {"before": 0.75, "after": 0.6}
    assert result.numbers["loss"] == pytest.approx({"estimate": 0.15, "low": low, "high": high, "confidence": 0.9})
    assert result.numbers["lost"] == [str(at) for at in range(120, 150)]
    assert (result.kind, result.state, result.silent) == ("budget", "broken", False)
    assert "75% right before, 60% after (loss 15 points" in result.sentence


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        (150, 150, "kept"),
        (150, 160, "kept"),
        (150, 147, "kept"),
        (150, 144, "open"),
        (150, 140, "open"),
        (150, 139, "broken"),
        (150, 100, "broken"),
    ],
)
def test_the_interval_is_held_against_the_budget(before: int, after: int, state: str) -> None:
    assert found(before, after).state == state


def test_above_the_budget_on_few_questions_is_open() -> None:
    result = found(17, 15, count=20)
    assert result.state == "open"
    assert "may be chance" in result.sentence


@pytest.mark.parametrize(
    ("before", "chance", "why"),
    [
        (52, 0.25, "The base itself is at chance: the suite cannot show a loss."),
        (0, 0.0, "The base itself is at chance"),
        (10, 0.0, "Even losing all of that would be within the budget: the suite cannot show a loss."),
    ],
)
def test_where_no_loss_can_show_the_suite_says_so(before: int, chance: float, why: str) -> None:
    result = found(before, 0, chance=chance)
    assert (result.silent, result.state) == (True, "silent")
    assert why in result.sentence


def test_above_chance_it_is_not_silent() -> None:
    assert not found(70, 60).silent
    assert not found(11, 11, chance=0.0).silent
