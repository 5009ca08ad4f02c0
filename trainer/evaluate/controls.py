"""What a learner of form alone would reach: one that knows which answers there are, and nothing of the questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Frozen
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.statistics.paired import Array, as_array

PERMUTATIONS: Final = 20
CONSTANTS_TRIED: Final = 50


class Control(Frozen):
    """A control's score on each example. ``answer``: what the constant one always says."""

    kind: Literal["constant", "permuted"]
    scores: tuple[float, ...]
    answer: str | None = None

    @property
    def mean(self) -> float:
        """Over the examples."""
        return float(self.array.mean())

    @property
    def array(self) -> Array:
        """The scores, one an example."""
        return as_array(self.scores)


def controls(
    references: Sequence[str], metric: Metric, *, taught: Sequence[str] = (), seed: int = 0
) -> tuple[Control, Control]:
    """Both controls under a metric.

    The constant one gives the same answer to every question. Where scores are right or wrong it is the answer that
    scores best when it is given to all, chosen on the held-out itself and so stronger than any that could be learnt:
    under exact match, the most frequent one. Where scores lie between it is the better one of two that one who knows
    only what was taught would choose: the answer that is most like the others, and the most frequent one. Chosen on
    the held-out, it would be flattered by the example that it is the answer to. The permuted one gives every question
    the answer to another, drawn at random: the mean over 20 permutations.

    Args:
        references: Of the held-out examples, in their order.
        metric: The primary one.
        taught: The training examples' most frequent answers, the most frequent first.
        seed: Of the permutations.

    Raises:
        EvaluationInvalid: There are no references.
    """
    if not references:
        raise EvaluationInvalid("there are no references to make a control of")
    constant = _best(references, metric, taught) if metric.binary else _typical(references, metric, taught)
    return constant, _permuted(references, metric, seed)


def _best(references: Sequence[str], metric: Metric, taught: Sequence[str]) -> Control:
    """The answer that scores best when it is given to all."""
    tried = dict.fromkeys((*_common(references), *_common(taught)))
    rows = {answer: tuple(metric.score(answer, reference) for reference in references) for answer in tried}
    best = max(rows, key=lambda answer: sum(rows[answer]))
    return Control(kind="constant", scores=rows[best], answer=best)


def _typical(references: Sequence[str], metric: Metric, taught: Sequence[str]) -> Control:
    """The better one of two answers that one may know without a question: the most frequent, and the most like others.

    Both are of what was taught, or of the held-out where nothing was.
    """
    tried = _common(taught or references)
    mean = {
        answer: sum(metric.score(answer, other) for other in tried if other != answer) / max(1, len(tried) - 1)
        for answer in tried
    }
    counts = Counter(references)
    likest = max(tried, key=lambda answer: mean[answer])
    often = [tried[0]] if taught or counts[tried[0]] > 1 else []
    # an answer that is nobody else's does not profit from the example that it is the answer to
    rows = {
        answer: tuple(
            mean[answer]
            if not taught and reference == answer and counts[reference] == 1
            else metric.score(answer, reference)
            for reference in references
        )
        for answer in (likest, *often)
    }
    best = max(rows, key=lambda answer: sum(rows[answer]))
    return Control(kind="constant", scores=rows[best], answer=best)


def _common(answers: Sequence[str]) -> list[str]:
    return [answer for answer, _ in Counter(answers).most_common(CONSTANTS_TRIED)]


def _permuted(references: Sequence[str], metric: Metric, seed: int) -> Control:
    random = np.random.default_rng(seed)
    total = np.zeros(len(references))
    for _ in range(PERMUTATIONS):
        order = random.permutation(len(references))
        total += [
            metric.score(references[other], reference) for other, reference in zip(order, references, strict=True)
        ]
    return Control(kind="permuted", scores=tuple(float(value) for value in total / PERMUTATIONS))
