"""When the validation part is measured, which measurement is the best, and when a training stops. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from trainer.tune.progress import Evaluation

MIN_POINTS: Final = 4
"""Measurements of a training of few epochs: with one or two the best of them would say little. A choice."""
MAX_COST: Final = 0.1
"""Share of a training's time that the measurements may take."""
PASSES: Final = 3
"""A trained token costs about as much as this many measured ones: its backward pass is two forward passes."""


def measured_steps(steps: int, epochs: int, *, tokens: int, validation_tokens: int) -> tuple[int, ...]:
    """The steps after which the validation part is measured: at the ends of epochs, and between them if these are
    fewer than MIN_POINTS; every few epochs if more would cost over MAX_COST. Always after the last step.

    Args:
        steps: Of the whole training, the same number in each epoch.
        tokens: Of an epoch.
        validation_tokens: Of one measurement.
    """
    affordable = max(1, int(MAX_COST * PASSES * tokens * epochs / max(1, validation_tokens)))
    an_epoch = steps // epochs
    if affordable < epochs:
        every = math.ceil(epochs / affordable) * an_epoch
        return (*range(every, steps, every), steps)
    parts = max(1, min(math.ceil(MIN_POINTS / epochs), affordable // epochs, an_epoch))
    return tuple(
        epoch * an_epoch + round(part * an_epoch / parts) for epoch in range(epochs) for part in range(1, parts + 1)
    )


def best_of(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The first of the lowest losses; None if there are none."""
    return min(evaluations, key=lambda evaluation: evaluation.loss, default=None)


def stops(evaluations: Sequence[Evaluation], patience: int) -> bool:
    """Whether the last `patience` measurements were all no better than the best one before them; 0 never stops."""
    best = best_of(evaluations)
    if patience == 0 or best is None:
        return False
    return len(evaluations) - 1 - evaluations.index(best) >= patience
