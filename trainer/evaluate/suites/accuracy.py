"""Right or wrong before and after, over the same questions: what a suite has to say about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from scipy import stats

from trainer.evaluate.forgetting import SuiteState
from trainer.evaluate.paired_difference import Method
from trainer.evaluate.spec import SuiteResult
from trainer.evaluate.statistics.paired import as_array, interval
from trainer.evaluate.verdict import Rules
from trainer.evaluate.verdict_text import points

AT_CHANCE: Final = "The base itself is at chance"
TOO_FEW: Final = "Losing all of that would keep the budget"
MAX_LOST_SHOWN: Final = 50
"""Most ids of questions that were right before and are wrong now, in a report."""


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
    """The loss with Tango's interval against the budget, as in the general suite (EVALUATION.md, "Forgetting").

    It is silent where the base is at chance, and where it gets so little right that losing all of it would keep the
    budget: then no loss can show.

    Args:
        name: The suite's.
        source: What the questions are, in words.
        ids: Of the questions.
        before: Which the base got right.
        after: Which the candidate got right.
        chance: The share that guessing gets right.
        rules: With the budget and the method.
    """
    budget, count = rules.budget.accuracy, len(ids)
    losses = as_array(before) - as_array(after)
    bounds = interval(losses, confidence=rules.method.confidence, binary=True, seed=rules.method.seed)
    loss, base, candidate = float(losses.mean()), sum(before) / count, sum(after) / count
    at_chance = _at_chance(sum(before), count, chance, rules.method)
    silent = at_chance or base <= budget
    state = _state(loss, bounds.low, budget)
    numbers: dict[str, Any] = {
        "accuracy": {"before": base, "after": candidate},
        "loss": {"estimate": loss, "low": bounds.low, "high": bounds.high, "confidence": rules.method.confidence},
        "budget": budget,
        "chance": chance,
        "questions": count,
        "source": source,
        "lost": [each for each, one, other in zip(ids, before, after, strict=True) if one and not other][
            :MAX_LOST_SHOWN
        ],
    }
    seen = f"{name}, {source}: {base:.0%} right before, {candidate:.0%} after"
    span = f"loss {points(loss)} points, interval {points(bounds.low)} to {points(bounds.high)}"
    if silent:
        sentence = f"{seen}. {AT_CHANCE if at_chance else TOO_FEW}: the suite cannot show a loss."
    else:
        sentence = f"{seen} ({span}; budget {points(budget)}){BUDGET_PHRASES[state]}."
    return SuiteResult(
        name=name,
        kind="budget",
        state="silent" if silent else state,
        silent=silent,
        sentence=sentence,
        numbers=numbers,
    )


BUDGET_PHRASES: Final[dict[SuiteState, str]] = {
    "kept": ", within the budget",
    "broken": ", more than the budget allows",
    "open": ", above the budget, but it may be chance",
}


def _state(loss: float, low: float, budget: float) -> SuiteState:
    if loss <= budget + 1e-12:
        return "kept"
    return "broken" if low > 0 else "open"


def _at_chance(right: int, count: int, chance: float, method: Method) -> bool:
    """Whether guessing would do as well: an exact one-sided binomial test at half of (1 - confidence)."""
    found = stats.binomtest(right, count, chance, alternative="greater")
    return bool(found.pvalue > (1 - method.confidence) / 2)
