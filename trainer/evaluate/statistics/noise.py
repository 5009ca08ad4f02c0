"""Noise between runs: the same questions, asked again with greedy decoding, may get different answers.

A busy engine batches requests differently and so sums in another order, which can tip a close decision. The noise has
two parts. Noise that affects each answer independently is already in the scores of one run, so an interval over
examples includes it. Noise that affects a whole run is not, however many examples there are; it only shows between
runs, and is added here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.evaluate.statistics import quantiles
from trainer.evaluate.statistics.paired import Array, Bounds

ADDED: Final = "; noise between runs added"


@dataclass(frozen=True, slots=True)
class RunNoise:
    """Variance of one run's mean score that its examples do not explain, on `degrees` of freedom.

    ``changed`` is the share of answers' scores that differ from the first run's.
    """

    variance: float
    degrees: float
    changed: float


NO_RUNS: Final = RunNoise(0.0, 0, 0.0)
"""For a single run: the noise between runs is unknown."""


def run_noise(runs: Sequence[Array]) -> RunNoise:
    """The variance component of runs in a two-way layout of examples by runs, one observation a cell.

    max(0, (MS_runs - MS_residual) / examples): S. R. Searle, G. Casella and C. E. McCulloch, Variance Components
    (1992), section 4.3; R. L. Brennan, Generalizability Theory (2001), section 2.2, for the design p x i.

    Args:
        runs: Per run, a score per example. Later runs may cover only the first examples; all are cut to the shortest.
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


def combined_noise(noises: Sequence[RunNoise]) -> RunNoise:
    """The noise of a difference (or a sum) of one run of each arm.

    Its degrees of freedom are F. E. Satterthwaite's (Biometrics Bulletin 2 (1946), 110-114).
    """
    positive = [noise for noise in noises if noise.variance > 0]
    variance = sum(noise.variance for noise in positive)
    changed = max((noise.changed for noise in noises), default=0.0)
    if not positive:
        return RunNoise(0.0, sum(noise.degrees for noise in noises), changed)
    return RunNoise(variance, variance**2 / sum(noise.variance**2 / noise.degrees for noise in positive), changed)


def widen_by_noise(estimate: float, bounds: Bounds, noise: RunNoise, confidence: float) -> Bounds:
    """Widen an interval over examples by the noise between runs.

    The two are independent, so that their variances add, at each end by itself: what stands for the variance over
    examples there is the square of the end's distance over the normal quantile (the method of variance estimates
    recovery: G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008), 1693-1702). The quantile of the sum is
    Student's with Satterthwaite's degrees of freedom, since the noise was seen in few runs.
    """
    if noise.variance == 0:
        return bounds
    z = quantiles.normal(confidence)
    low, high = (
        half_width(distance / z, noise, confidence) for distance in (estimate - bounds.low, bounds.high - estimate)
    )
    return Bounds(max(-1.0, estimate - low), min(1.0, estimate + high), bounds.method + ADDED)


def half_width(error: float, noise: RunNoise, confidence: float, degrees: float = math.inf) -> float:
    """Half the width of an interval with this standard error over examples, plus noise between runs.

    Args:
        error: The standard error.
        noise: Between runs, of everything compared.
        confidence: Two-sided.
        degrees: Degrees of freedom of the error.
    """
    variance = error**2 + noise.variance
    parts = [error**4 / degrees] + ([noise.variance**2 / noise.degrees] if noise.variance > 0 else [])
    total = sum(parts)
    degrees_of_freedom = variance**2 / total if total > 0 else math.inf
    return quantiles.student(confidence, degrees_of_freedom) * math.sqrt(variance)
