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

    The constant one gives to every question the answer that scores best when it is given to all: under exact match, the
    most frequent one. It is chosen on the held-out itself, so that it is stronger than any that could be learnt. The
    permuted one gives every question the answer to another, drawn at random: the mean over 20 permutations.

    Args:
        references: Of the held-out examples, in their order.
        metric: The primary one.
        taught: The training examples' answers; the most frequent of them are tried as constants too.
        seed: Of the permutations.

    Raises:
        EvaluationInvalid: There are no references.
    """
    if not references:
        raise EvaluationInvalid("there are no references to make a control of")
    return _constant(references, metric, taught), _permuted(references, metric, seed)


def _constant(references: Sequence[str], metric: Metric, taught: Sequence[str]) -> Control:
    common = [Counter(answers).most_common(CONSTANTS_TRIED) for answers in (references, taught)]
    tried = dict.fromkeys(answer for counts in common for answer, _ in counts)
    rows = {answer: tuple(metric.score(answer, reference) for reference in references) for answer in tried}
    best = max(rows, key=lambda answer: sum(rows[answer]))
    return Control(kind="constant", scores=rows[best], answer=best)


def _permuted(references: Sequence[str], metric: Metric, seed: int) -> Control:
    random = np.random.default_rng(seed)
    total = np.zeros(len(references))
    for _ in range(PERMUTATIONS):
        order = random.permutation(len(references))
        total += [
            metric.score(references[other], reference) for other, reference in zip(order, references, strict=True)
        ]
    return Control(kind="permuted", scores=tuple(float(value) for value in total / PERMUTATIONS))
