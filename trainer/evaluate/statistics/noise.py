"""Noise between runs: the same questions, asked greedily again, are not always answered the same.

A busy engine puts requests into other batches, sums in another order, and a close decision tips. Two parts of that
noise matter. What strikes each answer by itself is in the scores of one run already, so that an interval over examples
holds it. What strikes a whole run alike is not, however many examples there are; it shows only between runs, and is
added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from trainer.evaluate.statistics.paired import Array, Bounds

ADDED: Final = "; noise between runs added"


@dataclass(frozen=True, slots=True)
class RunNoise:
    """Variance of one run's mean score that its examples do not explain, on `degrees` of freedom.

    ``changed`` is the share of answers' scores that differ from the first run's.
    """

    variance: float
    degrees: int
    changed: float


NO_RUNS: Final = RunNoise(0.0, 0, 0.0)
"""One run alone: nothing is known of the noise between runs."""


def run_noise(runs: Sequence[Array]) -> RunNoise:
    """The variance component of runs in a two-way layout of examples by runs, one observation a cell.

    max(0, (MS_runs - MS_residual) / examples): S. R. Searle, G. Casella and C. E. McCulloch, Variance Components
    (1992), section 4.3; R. L. Brennan, Generalizability Theory (2001), section 2.2, for the design p x i.

    Args:
        runs: Each a score an example. Later runs may be over the first examples alone; all are cut to the shortest.
    """
    if len(runs) < 2:
        return NO_RUNS
    width = min(len(run) for run in runs)
    table = np.stack([run[:width] for run in runs])
    count, degrees = len(runs), len(runs) - 1
    of_runs, of_examples = table.mean(axis=1), table.mean(axis=0)
    between = width * float(np.var(of_runs, ddof=1))
    residual = table - of_runs[:, None] - of_examples[None, :] + table.mean()
    within = float((residual**2).sum()) / max(1, degrees * (width - 1))
    changed = float(np.mean(table[1:] != table[0]))
    return RunNoise(max(0.0, (between - within) / width), count - 1, changed)


def with_noise(estimate: float, bounds: Bounds, noises: Sequence[RunNoise], confidence: float) -> Bounds:
    """Widen an interval over examples by the noise between the arms' runs.

    The two are independent, so that their margins add as squares, at each end by itself (the method of variance
    estimates recovery: G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008), 1693-1702). The noise's margin has
    Student's quantile: it was seen in few runs.
    """
    margin = noise_margin(noises, confidence)
    if margin == 0:
        return bounds
    low = estimate - math.hypot(estimate - bounds.low, margin)
    high = estimate + math.hypot(bounds.high - estimate, margin)
    return Bounds(max(-1.0, low), min(1.0, high), bounds.method + ADDED)


def noise_margin(noises: Sequence[RunNoise], confidence: float) -> float:
    """How far noise between runs alone may move the difference of one run of each arm."""
    variance, degrees = sum(noise.variance for noise in noises), sum(noise.degrees for noise in noises)
    if variance == 0:
        return 0.0
    return float(stats.t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(variance)
