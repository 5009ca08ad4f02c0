"""The result of a suite with binary scores, before and after training, over the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from scipy import stats

from trainer.evaluate.forgetting import LOSS_CONFIDENCE, loss_state
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.spec import SuiteResult
from trainer.evaluate.statistics.paired import as_array, interval
from trainer.evaluate.verdict import Rules
from trainer.evaluate.verdict_text import points, within_budget

AT_CHANCE: Final = "The base itself is at chance"
TOO_FEW: Final = "Even losing all of that would be within the budget"
MAX_LOST_SHOWN: Final = 50
"""Maximum ids of lost questions (right before, wrong after) in a report."""


def accuracy_result(
    name: str,
    source: str,
    ids: Sequence[str],
    before: Sequence[bool],
    after: Sequence[bool],
    *,
    chance: float,
    rules: Rules,
) -> SuiteResult:
    """Compare the loss with the budget by Tango's interval, as for the general suite (`forgetting.loss_state`).

    The result is silent if the base is at chance, or gets so few right that losing all of them would be within the
    budget: then a loss cannot show.

    Args:
        name: The suite's name.
        source: A description of the questions.
        ids: Of the questions.
        before: Whether the base was right, per question.
        after: Whether the candidate was right, per question.
        chance: The expected accuracy of guessing.
        rules: With the budget and the method.
    """
    budget, count = rules.budget.accuracy, len(ids)
    losses = as_array(before) - as_array(after)
    bounds = interval(losses, confidence=LOSS_CONFIDENCE, binary=True, seed=rules.method.seed)
    loss, base, candidate = float(losses.mean()), sum(before) / count, sum(after) / count
    at_chance = _at_chance(sum(before), count, chance, rules.method)
    silent = at_chance or base <= budget
    state = loss_state(loss, bounds.low, bounds.high, budget)
    numbers: dict[str, Any] = {
        "accuracy": {"before": base, "after": candidate},
        "loss": {"estimate": loss, "low": bounds.low, "high": bounds.high, "confidence": LOSS_CONFIDENCE},
        "budget": budget,
        "chance": chance,
        "questions": count,
        "source": source,
        "lost": [
            item for item, was_right, is_right in zip(ids, before, after, strict=True) if was_right and not is_right
        ][:MAX_LOST_SHOWN],
    }
    summary = f"{name}, {source}: {base:.0%} right before, {candidate:.0%} after"
    loss_text = (
        f"loss {points(loss)} points, {LOSS_CONFIDENCE:.0%} interval {points(bounds.low)} to {points(bounds.high)}"
    )
    if silent:
        sentence = f"{summary}. {AT_CHANCE if at_chance else TOO_FEW}: the suite cannot show a loss."
    else:
        sentence = f"{summary} ({loss_text}; budget {points(budget)}){within_budget(state, loss, budget)}."
    return SuiteResult(
        name=name,
        kind="budget",
        state="silent" if silent else state,
        silent=silent,
        sentence=sentence,
        numbers=numbers,
    )


def _at_chance(right: int, count: int, chance: float, method: IntervalMethod) -> bool:
    """Whether the accuracy is not above guessing: exact one-sided binomial test at (1 - confidence) / 2."""
    test = stats.binomtest(right, count, chance, alternative="greater")
    return bool(test.pvalue > (1 - method.confidence) / 2)
