"""Forgetting: a general suite before and after training, by log-probabilities, in minutes and without a network.

A multiple-choice item is answered by the likeliest continuation: the choice whose tokens, after the stem, have the
highest log-probability per byte (the length-normalised accuracy of EleutherAI's lm-evaluation-harness). Perplexity is
exp(mean nats per token), with equal weight for each text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from scipy import stats

from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Arm, Frozen
from trainer.evaluate.asking import OnProgress
from trainer.evaluate.likelihood import Scorer, TextBatch, TokenLogprobs, common_prefix
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.statistics.paired import as_array, bca_interval, interval, student_interval

GENERAL: Final = "general.jsonl"
TOLERANCE: Final = 1e-12
MAX_NATS: Final = 100.0
"""Bounds the exponent of a perplexity, so that a broken model's is still finite."""


class ChoiceItem(Frozen):
    """A stem and its continuations, one of them right (`answer` counts from 0)."""

    kind: Literal["choice"]
    id: str
    area: str
    stem: str = Field(min_length=1)
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.answer >= len(self.choices) or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"{self.id}: `answer` must be the index of a choice, and the choices must be unique")
        return self


class TextItem(Frozen):
    """A neutral text; ``area`` is its register."""

    kind: Literal["text"]
    id: str
    area: str
    text: str = Field(min_length=1)


Item = Annotated[ChoiceItem | TextItem, Field(discriminator="kind")]
_ITEM: Final[TypeAdapter[ChoiceItem | TextItem]] = TypeAdapter(Item)


class SuiteItems(Frozen):
    """A suite's items."""

    name: str
    choices: tuple[ChoiceItem, ...]
    texts: tuple[TextItem, ...]

    @property
    def chance(self) -> float:
        """The expected accuracy of guessing."""
        return float(np.mean([1 / len(item.choices) for item in self.choices]))


def read_suite(name: str, content: str) -> SuiteItems:
    """Parse a suite from JSON lines.

    Raises:
        EvaluationInvalid: A line is invalid, an id is not unique, or there are too few items of a kind.
    """
    items: list[ChoiceItem | TextItem] = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            items.append(_ITEM.validate_python(json.loads(line)))
        except (ValidationError, ValueError) as error:
            raise EvaluationInvalid(f"suite {name}, line {number}: not a valid item: {error}") from error
    if len({item.id for item in items}) != len(items):
        raise EvaluationInvalid(f"suite {name}: the ids must be unique")
    choices = tuple(item for item in items if isinstance(item, ChoiceItem))
    texts = tuple(item for item in items if isinstance(item, TextItem))
    if not choices or len(texts) < 2:
        raise EvaluationInvalid(f"suite {name} needs at least one multiple-choice item and two texts")
    return SuiteItems(name=name, choices=choices, texts=texts)


def general_suite() -> SuiteItems:
    """The suite that ships with this package."""
    return read_suite("general", (files("trainer.evaluate.suites") / GENERAL).read_text("utf-8"))


class SuiteMeasurement(Frozen):
    """One arm on a suite: which items it got right, and each text's mean nats per token, in the suite's order."""

    label: str
    suite: str
    right: tuple[bool, ...]
    nats: tuple[float, ...]


async def measure(
    arm: Arm, suite: SuiteItems, scorer: Scorer, on_progress: OnProgress | None = None
) -> SuiteMeasurement:
    """Run the suite on an arm as plain text, without the arm's prompt: this measures the weights."""
    batches = [
        TextBatch(f"{suite.name}/{item.id}", (item.stem, *(f"{item.stem} {choice}" for choice in item.choices)))
        for item in suite.choices
    ]
    batches += [TextBatch(f"{suite.name}/{item.id}", (item.text,)) for item in suite.texts]
    results = await scorer.texts(arm, batches, on_progress)
    split_at = len(suite.choices)
    return SuiteMeasurement(
        label=arm.label,
        suite=suite.name,
        right=tuple(
            likeliest(item, scored) == item.answer
            for item, scored in zip(suite.choices, results[:split_at], strict=True)
        ),
        nats=tuple(scored[0].nats for scored in results[split_at:]),
    )


def likeliest(item: ChoiceItem, rows: Sequence[TokenLogprobs]) -> int:
    """The index of the choice with the highest log-probability per byte. ``rows``: the stem alone, then each choice."""
    stem_row, *continuations = rows
    scores = []
    for choice, continuation in zip(item.choices, continuations, strict=True):
        shared = common_prefix(stem_row.tokens, continuation.tokens)
        scores.append(sum(continuation.logprobs[shared:]) / len(choice.encode()))
    return int(np.argmax(scores))


class Budget(Frozen):
    """How much may be lost: accuracy as a share, perplexity as a relative rise."""

    accuracy: float = Field(0.05, ge=0, le=1)
    perplexity: float = Field(1.0, ge=0)


SuiteState = Literal["kept", "broken", "open", "silent"]


class SuitePart(Frozen):
    """Accuracy or perplexity. ``loss``, ``low``, ``high``: of accuracy as a share, of perplexity as a relative rise.

    ``state``: kept (within the budget), broken (above it), open (above it, but the loss may be chance) or silent (the
    base is at chance, so a loss cannot show).
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
    """A suite before and after. ``lost``, ``won``: ids of items that are right only before, or only after."""

    suite: str
    against: str
    accuracy: SuitePart
    perplexity: SuitePart
    chance: float
    areas: tuple[AreaResult, ...]
    lost: tuple[str, ...]
    won: tuple[str, ...]

    @property
    def state(self) -> Literal["kept", "broken", "open"]:
        """The state of both parts together; a silent part is ignored."""
        states = {self.accuracy.state, self.perplexity.state}
        return "broken" if "broken" in states else "open" if "open" in states else "kept"


def compare_measurements(
    suite: SuiteItems, base: SuiteMeasurement, candidate: SuiteMeasurement, budget: Budget, method: IntervalMethod
) -> Forgetting:
    """Compare two measurements of a suite; ``base`` is the arm without the adapter.

    Raises:
        EvaluationInvalid: A measurement is not of this suite.
    """
    for measurement in (base, candidate):
        if (len(measurement.right), len(measurement.nats)) != (len(suite.choices), len(suite.texts)):
            raise EvaluationInvalid(f"{measurement.label!r} was not measured on the suite {suite.name}")
    by_area: dict[str, list[int]] = {}
    for index, item in enumerate(suite.choices):
        by_area.setdefault(item.area, []).append(index)
    pairs = list(zip(suite.choices, base.right, candidate.right, strict=True))
    return Forgetting(
        suite=suite.name,
        against=base.label,
        accuracy=_accuracy(suite, base, candidate, budget.accuracy, method),
        perplexity=_perplexity(base, candidate, budget.perplexity, method),
        chance=suite.chance,
        areas=tuple(
            AreaResult(
                area=area,
                items=len(indices),
                base=sum(base.right[index] for index in indices),
                candidate=sum(candidate.right[index] for index in indices),
                at_chance=at_chance(
                    [suite.choices[index] for index in indices], [base.right[index] for index in indices], method
                ),
            )
            for area, indices in by_area.items()
        ),
        lost=tuple(item.id for item, before, after in pairs if before and not after),
        won=tuple(item.id for item, before, after in pairs if after and not before),
    )


def at_chance(items: Sequence[ChoiceItem], right: Sequence[bool], method: IntervalMethod) -> bool:
    """Whether the accuracy is not above guessing: exact one-sided binomial test at (1 - confidence) / 2."""
    chance = float(np.mean([1 / len(item.choices) for item in items]))
    test = stats.binomtest(sum(right), len(right), chance, alternative="greater")
    return bool(test.pvalue > (1 - method.confidence) / 2)


def _accuracy(
    suite: SuiteItems, base: SuiteMeasurement, candidate: SuiteMeasurement, budget: float, method: IntervalMethod
) -> SuitePart:
    losses = as_array(base.right) - as_array(candidate.right)
    bounds = interval(losses, confidence=method.confidence, binary=True, seed=method.seed)
    loss = float(losses.mean())
    silent = at_chance(suite.choices, base.right, method)
    return SuitePart(
        base=float(np.mean(base.right)),
        candidate=float(np.mean(candidate.right)),
        loss=loss,
        low=bounds.low,
        high=bounds.high,
        budget=budget,
        items=len(losses),
        state="silent" if silent else _state(loss, bounds.low, budget),
    )


def _perplexity(
    base: SuiteMeasurement, candidate: SuiteMeasurement, budget: float, method: IntervalMethod
) -> SuitePart:
    rises = as_array(candidate.nats) - as_array(base.nats)
    rise, low, high = (float(rises.mean()),) * 3
    if np.ptp(rises) > TOLERANCE:
        student = student_interval(rises, method.confidence)
        bootstrap = bca_interval(rises, method.confidence, seed=method.seed, resamples=method.resamples)
        low, high = min(student[0], bootstrap[0]), max(student[1], bootstrap[1])
    return SuitePart(
        base=_exp(float(np.mean(base.nats))),
        candidate=_exp(float(np.mean(candidate.nats))),
        loss=_exp(rise) - 1,
        low=_exp(low) - 1,
        high=_exp(high) - 1,
        budget=budget,
        items=len(rises),
        state=_state(_exp(rise) - 1, _exp(low) - 1, budget),
    )


def _exp(nats: float) -> float:
    return math.exp(min(nats, MAX_NATS))


def _state(loss: float, low: float, budget: float) -> SuiteState:
    if loss <= budget + TOLERANCE:
        return "kept"
    return "broken" if low > 0 else "open"
