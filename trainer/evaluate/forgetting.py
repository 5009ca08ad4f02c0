"""What was forgotten: a general suite before and after, by log-probabilities, in minutes and without a network.

Multiple choice is decided by the likeliest continuation: the choice whose tokens, after the stem, have the highest
log-probability a byte (the length-normalised accuracy of EleutherAI's lm-evaluation-harness). Perplexity is
exp(mean nats per token), each text weighing the same.
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
from trainer.evaluate.paired_difference import Method
from trainer.evaluate.statistics.paired import as_array, bca_interval, interval, student_interval

GENERAL: Final = "general.jsonl"
TOLERANCE: Final = 1e-12
MAX_NATS: Final = 100.0
"""Of a perplexity, so that that of a broken model is still a number."""


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
            raise ValueError(f"{self.id}: `answer` must name one of the choices, and no choice may stand twice")
        return self


class TextItem(Frozen):
    """A neutral text; `area` is its register."""

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
    """A suite from JSON lines.

    Raises:
        EvaluationInvalid: A line is no item, an id stands twice, or there are too few items of a kind.
    """
    items: list[ChoiceItem | TextItem] = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            items.append(_ITEM.validate_python(json.loads(line)))
        except (ValidationError, ValueError) as error:
            raise EvaluationInvalid(f"suite {name}, line {number} is no item: {error}") from error
    if len({item.id for item in items}) != len(items):
        raise EvaluationInvalid(f"suite {name}: an id stands twice")
    choices = tuple(item for item in items if isinstance(item, ChoiceItem))
    texts = tuple(item for item in items if isinstance(item, TextItem))
    if not choices or len(texts) < 2:
        raise EvaluationInvalid(f"suite {name} needs a multiple-choice item and two texts")
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
    """Put the suite to an arm, as plain text: what is asked is what the weights know, not what a prompt says."""
    passages = [
        TextBatch(f"{suite.name}/{item.id}", (item.stem, *(f"{item.stem} {choice}" for choice in item.choices)))
        for item in suite.choices
    ]
    passages += [TextBatch(f"{suite.name}/{item.id}", (item.text,)) for item in suite.texts]
    rows = await scorer.texts(arm, passages, on_progress)
    border = len(suite.choices)
    return SuiteMeasurement(
        label=arm.label,
        suite=suite.name,
        right=tuple(
            likeliest(item, found) == item.answer for item, found in zip(suite.choices, rows[:border], strict=True)
        ),
        nats=tuple(found[0].nats for found in rows[border:]),
    )


def likeliest(item: ChoiceItem, rows: Sequence[TokenLogprobs]) -> int:
    """The choice with the highest log-probability a byte; `rows[0]` is the stem alone, the others each a choice."""
    stem, *wholes = rows
    scores = []
    for choice, whole in zip(item.choices, wholes, strict=True):
        shared = common_prefix(stem.tokens, whole.tokens)
        scores.append(sum(whole.logprobs[shared:]) / len(choice.encode()))
    return int(np.argmax(scores))


class Budget(Frozen):
    """How much may be lost: a share of right answers, and a relative rise of the perplexity."""

    accuracy: float = Field(0.05, ge=0, le=1)
    perplexity: float = Field(1.0, ge=0)


SuiteState = Literal["kept", "broken", "open", "silent"]


class SuitePart(Frozen):
    """One half of the suite. ``loss`` and its interval: of accuracy as a share, of perplexity as a relative rise.

    ``state``: kept within the budget; broken; open (above it, but the loss may be chance); silent (the base is at
    chance: no loss can show).
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
    """A part of the multiple-choice items. ``at_chance``: the base is not shown to be above guessing in it."""

    area: str
    items: int
    base: int
    candidate: int
    at_chance: bool


class Forgetting(Frozen):
    """Before and after, on a suite. ``lost`` and ``won``: ids of items that were right before, or are only now."""

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
        """Of both parts together; a silent one says nothing."""
        states = {self.accuracy.state, self.perplexity.state}
        return "broken" if "broken" in states else "open" if "open" in states else "kept"


def compare_measurements(
    suite: SuiteItems, base: SuiteMeasurement, candidate: SuiteMeasurement, budget: Budget, method: Method
) -> Forgetting:
    """Compare two measurements of a suite; the base is the arm without the adapter.

    Raises:
        EvaluationInvalid: They are not of this suite.
    """
    for found in (base, candidate):
        if (len(found.right), len(found.nats)) != (len(suite.choices), len(suite.texts)):
            raise EvaluationInvalid(f"{found.label!r} was not measured on the suite {suite.name}")
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
                items=len(places),
                base=sum(base.right[place] for place in places),
                candidate=sum(candidate.right[place] for place in places),
                at_chance=at_chance(
                    [suite.choices[place] for place in places], [base.right[at] for at in places], method
                ),
            )
            for area, places in by_area.items()
        ),
        lost=tuple(item.id for item, before, after in pairs if before and not after),
        won=tuple(item.id for item, before, after in pairs if after and not before),
    )


def at_chance(items: Sequence[ChoiceItem], right: Sequence[bool], method: Method) -> bool:
    """Whether guessing would do as well, by an exact one-sided binomial test at half of (1 - confidence)."""
    guessing = float(np.mean([1 / len(item.choices) for item in items]))
    found = stats.binomtest(sum(right), len(right), guessing, alternative="greater")
    return bool(found.pvalue > (1 - method.confidence) / 2)


def _accuracy(
    suite: SuiteItems, base: SuiteMeasurement, candidate: SuiteMeasurement, budget: float, method: Method
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


def _perplexity(base: SuiteMeasurement, candidate: SuiteMeasurement, budget: float, method: Method) -> SuitePart:
    rises = as_array(candidate.nats) - as_array(base.nats)
    rise, low, high = (float(rises.mean()),) * 3
    if np.ptp(rises) > TOLERANCE:
        one = student_interval(rises, method.confidence)
        other = bca_interval(rises, method.confidence, seed=method.seed, resamples=method.resamples)
        low, high = min(one[0], other[0]), max(one[1], other[1])
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
