"""Forgetting: a general suite before and after training, and whether the loss is shown to be within the budget.

`suites/general.py` has the items and how an arm is measured. Perplexity is exp(mean nats per token), with equal weight
for each text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from pydantic import Field
from scipy import stats

from trainer.errors import EvaluationInvalid
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.statistics.paired import Array, as_array, bca_interval, interval, student_interval
from trainer.evaluate.suites.general import ChatItem, ChoiceItem, SuiteItems, SuiteMeasurement, chance_of
from trainer.runs.protocol import Frozen

TOLERANCE: Final = 1e-12
MAX_NATS: Final = 100.0
"""Bounds the exponent of a perplexity, so that a broken model's is still finite."""
LOSS_CONFIDENCE: Final = 0.90
"""Two-sided: the upper end is the one-sided 95% bound that decides whether a loss is within its budget."""
WORD_ORDER_SHARE: Final = 0.5
"""The share that may be lost of what the order of the words tells the base about a text, in nats per token."""


class Budget(Frozen):
    """How much may be lost: of accuracy in plain text and in a chat a share, of perplexity a relative rise.

    ``perplexity``: None for the rise that costs WORD_ORDER_SHARE of what the base knows from the order of the words.
    """

    accuracy: float = Field(0.05, ge=0, le=1)
    chat: float = Field(0.10, ge=0, le=1)
    perplexity: float | None = Field(None, ge=0)


SuiteState = Literal["kept", "broken", "open", "silent"]


class SuitePart(Frozen):
    """Accuracy in plain text or in a chat, or perplexity.

    Attributes:
        loss, low, high: Of accuracy as a share, of perplexity as a relative rise; with the ends of the interval.
        state: See `loss_state`; silent if the base is no better than chance, so that a loss cannot show.
    """

    base: float
    candidate: float
    loss: float
    low: float
    high: float
    budget: float
    items: int
    state: SuiteState


class AreaResult(Frozen):
    """One area of the multiple-choice items. ``at_chance``: the base is not shown to be better than guessing."""

    area: str
    items: int
    base: int
    candidate: int
    at_chance: bool


class Forgetting(Frozen):
    """A suite before and after.

    Attributes:
        chat: None in records of before there were items in a chat, and if the suite has none.
        shuffled_perplexity: The base's on the texts with their words shuffled; None if a setting is the budget.
        lost, won: Ids of items that are right only before, or only after.
    """

    suite: str
    against: str
    accuracy: SuitePart
    chat: SuitePart | None = None
    perplexity: SuitePart
    shuffled_perplexity: float | None = None
    chance: float
    areas: tuple[AreaResult, ...]
    lost: tuple[str, ...]
    won: tuple[str, ...]

    @property
    def state(self) -> Literal["kept", "broken", "open"]:
        """The state of all parts together. Silent parts are ignored, but if all are silent, nothing is shown: open."""
        parts = (self.accuracy, self.chat, self.perplexity)
        states = {part.state for part in parts if part is not None} - {"silent"}
        return "broken" if "broken" in states else "open" if "open" in states or not states else "kept"


def loss_state(loss: float, low: float, high: float, budget: float) -> Literal["kept", "broken", "open"]:
    """Whether a loss is within its budget: ``low`` and ``high`` are the ends of the interval at LOSS_CONFIDENCE.

    Kept if the whole interval is; broken if the estimate is not, and the interval lies above zero; else open. "Kept" is
    a non-inferiority test: a loss as large as the budget is nominally kept in 5% of cases.
    """
    if high <= budget + TOLERANCE:
        return "kept"
    return "broken" if loss > budget + TOLERANCE and low > 0 else "open"


def compare_measurements(
    suite: SuiteItems, base: SuiteMeasurement, candidate: SuiteMeasurement, budget: Budget, method: IntervalMethod
) -> Forgetting:
    """Compare two measurements of a suite; ``base`` is the arm without the adapter.

    Raises:
        EvaluationInvalid: A measurement is not of this suite, or the base's shuffled texts are needed and missing.
    """
    _require_same(suite, base, candidate, budget)
    items = suite.multiple_choice
    before, after = (*base.right, *base.chat_right), (*candidate.right, *candidate.chat_right)
    pairs = list(zip(items, before, after, strict=True))
    return Forgetting(
        suite=suite.name,
        against=base.label,
        accuracy=accuracy_part(suite.choices, base.right, candidate.right, budget.accuracy, method),
        chat=accuracy_part(suite.chats, base.chat_right, candidate.chat_right, budget.chat, method)
        if suite.chats
        else None,
        perplexity=_perplexity(base, candidate, budget.perplexity, method),
        shuffled_perplexity=_exp(float(np.mean(base.shuffled_nats))) if budget.perplexity is None else None,
        chance=chance_of(items),
        areas=_areas(items, before, after, method),
        lost=tuple(item.id for item, was_right, is_right in pairs if was_right and not is_right),
        won=tuple(item.id for item, was_right, is_right in pairs if is_right and not was_right),
    )


def _require_same(suite: SuiteItems, base: SuiteMeasurement, candidate: SuiteMeasurement, budget: Budget) -> None:
    counts = (len(suite.choices), len(suite.chats), len(suite.texts))
    for measurement in (base, candidate):
        if (len(measurement.right), len(measurement.chat_right), len(measurement.nats)) != counts:
            raise EvaluationInvalid(f"{measurement.label!r} was not measured on the suite {suite.name}")
    if budget.perplexity is None and len(base.shuffled_nats) != len(suite.texts):
        raise EvaluationInvalid(f"{base.label!r} was not measured on the shuffled texts of the suite {suite.name}")


def _areas(
    items: Sequence[ChoiceItem | ChatItem], before: Sequence[bool], after: Sequence[bool], method: IntervalMethod
) -> tuple[AreaResult, ...]:
    by_area: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_area.setdefault(item.area, []).append(index)
    return tuple(
        AreaResult(
            area=area,
            items=len(indices),
            base=sum(before[index] for index in indices),
            candidate=sum(after[index] for index in indices),
            at_chance=at_chance([items[index] for index in indices], [before[index] for index in indices], method),
        )
        for area, indices in by_area.items()
    )


def at_chance(items: Sequence[ChoiceItem | ChatItem], right: Sequence[bool], method: IntervalMethod) -> bool:
    """Whether the accuracy is not above guessing: exact one-sided binomial test at (1 - confidence) / 2."""
    test = stats.binomtest(sum(right), len(right), chance_of(items), alternative="greater")
    return bool(test.pvalue > (1 - method.confidence) / 2)


def accuracy_part(
    items: Sequence[ChoiceItem | ChatItem],
    base: Sequence[bool],
    candidate: Sequence[bool],
    budget: float,
    method: IntervalMethod,
) -> SuitePart:
    """The loss of right answers, with Tango's paired interval at LOSS_CONFIDENCE.

    Args:
        items: The items.
        base, candidate: Whether each was right, before and after.
        budget: The largest loss allowed, as a share.
        method: With the confidence at which the base has to be better than chance.
    """
    losses = as_array(base) - as_array(candidate)
    bounds = interval(losses, confidence=LOSS_CONFIDENCE, binary=True, seed=method.seed)
    loss = float(losses.mean())
    silent = at_chance(items, base, method)
    return SuitePart(
        base=float(np.mean(base)),
        candidate=float(np.mean(candidate)),
        loss=loss,
        low=bounds.low,
        high=bounds.high,
        budget=budget,
        items=len(losses),
        state="silent" if silent else loss_state(loss, bounds.low, bounds.high, budget),
    )


def _perplexity(
    base: SuiteMeasurement, candidate: SuiteMeasurement, budget: float | None, method: IntervalMethod
) -> SuitePart:
    rises = as_array(candidate.nats) - as_array(base.nats)
    rise, (low, high) = float(rises.mean()), _mean_interval(rises, method, LOSS_CONFIDENCE)
    known = as_array(base.shuffled_nats) - as_array(base.nats) if budget is None else None
    limit = _exp(WORD_ORDER_SHARE * float(known.mean())) - 1 if known is not None else budget or 0.0
    # a base for which shuffled words are as likely as the text knows nothing that could be lost
    silent = known is not None and _mean_interval(known, method, method.confidence)[0] <= 0
    return SuitePart(
        base=_exp(float(np.mean(base.nats))),
        candidate=_exp(float(np.mean(candidate.nats))),
        loss=_exp(rise) - 1,
        low=_exp(low) - 1,
        high=_exp(high) - 1,
        budget=max(limit, 0.0),
        items=len(rises),
        state="silent" if silent else loss_state(_exp(rise) - 1, _exp(low) - 1, _exp(high) - 1, limit),
    )


def _mean_interval(nats: Array, method: IntervalMethod, confidence: float) -> tuple[float, float]:
    """At each end the wider of Student's interval and the BCa bootstrap."""
    if np.ptp(nats) <= TOLERANCE:
        return (float(nats.mean()),) * 2
    student = student_interval(nats, confidence)
    bootstrap = bca_interval(nats, confidence, seed=method.seed, resamples=method.resamples)
    return min(student[0], bootstrap[0]), max(student[1], bootstrap[1])


def _exp(nats: float) -> float:
    return math.exp(min(nats, MAX_NATS))
