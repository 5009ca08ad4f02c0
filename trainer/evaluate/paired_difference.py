"""Two rows of scores over the same examples: the difference, its interval, and what could have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field
from statsmodels.stats.proportion import proportion_confint

from trainer.evaluate.arms import Frozen
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.statistics import power
from trainer.evaluate.statistics.noise import NO_RUNS, RunNoise, combined_noise, run_noise, widen_by_noise
from trainer.evaluate.statistics.paired import (
    RESAMPLES,
    Array,
    Bounds,
    all_equal,
    as_array,
    interval,
    mcnemar_p,
    wins_and_losses,
)


class Method(Frozen):
    """How intervals are made. ``confidence`` is two-sided; ``power`` is what planning aims at."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    power: float = Field(0.8, gt=0.5, lt=1)
    resamples: int = Field(RESAMPLES, ge=200, le=100_000)
    seed: int = 0


class Difference(Frozen):
    """How much higher `of` scored than `against`, over the same examples; from -1 to 1, but for nats a token.

    ``wins`` and ``losses``: examples on which it scored higher, lower. ``p_value``: McNemar's exact test, for
    right-or-wrong scores. ``noise``: the standard deviation of noise between runs, which the interval holds; None where
    nothing was asked twice. ``bound``: what the lower end is to be above; ``detectable``: the smallest true difference
    that so many examples show to be above it, with the planned power; ``needed``: examples in all after which a true
    difference as large as the estimate would be told from the bound. None: none does.
    """

    of: str
    against: str
    estimate: float
    low: float
    high: float
    confidence: float
    method: str
    examples: int
    wins: int
    losses: int
    p_value: float | None = None
    noise: float | None = None
    bound: float = 0.0
    detectable: float | None = None
    needed: int | None = None


class Mean(Frozen):
    """An arm's mean score and its interval."""

    label: str
    mean: float
    low: float
    high: float
    examples: int


def arm_difference(comparison: Comparison, of: str, against: str, method: Method, *, bound: float = 0.0) -> Difference:
    """Contrast two arms of a comparison."""
    one, other = comparison.result(of), comparison.result(against)
    return paired_difference(
        (of, one.scores, noise_of(one)),
        (against, other.scores, noise_of(other)),
        binary=comparison.binary,
        method=method,
        bound=bound,
    )


def paired_difference(
    of: tuple[str, Array, RunNoise],
    against: tuple[str, Array, RunNoise],
    *,
    binary: bool,
    method: Method,
    bound: float = 0.0,
) -> Difference:
    """Contrast two rows of scores, each with its name and its noise between runs.

    Args:
        of: The row that is hoped to be higher.
        against: The other, over the same examples.
        binary: Every score of both is 0 or 1.
        method: How the interval is made.
        bound: What the lower end is to be above, for planning.
    """
    (name, high_row, one), (other_name, low_row, other) = of, against
    differences = high_row - low_row
    estimate, noise = float(differences.mean()), combined_noise([one, other])
    bounds = interval(
        differences, confidence=method.confidence, binary=binary, seed=method.seed, resamples=method.resamples
    )
    bounds = widen_by_noise(estimate, bounds, noise, method.confidence)
    wins, losses = wins_and_losses(differences)
    plan = power.PowerPlan(bound, method.confidence, method.power, noise)
    spread = power.score_variance(differences, binary=binary)
    return Difference(
        of=name,
        against=other_name,
        estimate=estimate,
        low=bounds.low,
        high=bounds.high,
        confidence=method.confidence,
        method=bounds.method,
        examples=len(differences),
        wins=wins,
        losses=losses,
        p_value=mcnemar_p(wins, losses) if binary else None,
        noise=math.sqrt(noise.variance) if noise.degrees else None,
        bound=bound,
        detectable=power.detectable(spread, len(differences), plan),
        needed=_needed(differences, bounds, spread, plan, binary=binary),
    )


def _needed(
    differences: Array, bounds: Bounds, spread: power.ScoreVariance, plan: power.PowerPlan, *, binary: bool
) -> int | None:
    """Examples in all; more than there are where the interval holds the bound."""
    estimate = float(differences.mean())
    if not binary and all_equal(differences):
        return power.examples_needed_alike(estimate, plan)
    ways = (
        power.examples_needed(spread, estimate, plan),
        power.examples_needed_by_interval(len(differences), estimate, bounds, plan.bound),
    )
    known = [way for way in ways if way is not None]
    return max(known) if len(known) == len(ways) else None


def noise_of(result: ArmResult) -> RunNoise:
    """An arm's noise between its runs."""
    return run_noise([as_array(run) for run in result.runs]) if len(result.runs) > 1 else NO_RUNS


def mean_of(result: ArmResult, *, binary: bool, method: Method) -> Mean:
    """An arm's mean with an interval over examples: Wilson's for right-or-wrong scores, else as for differences."""
    scores = result.scores
    if binary:
        alpha = 1 - method.confidence
        low, high = proportion_confint(int(scores.sum()), len(scores), alpha=alpha, method="wilson")
    else:
        found = interval(
            scores, confidence=method.confidence, binary=False, seed=method.seed, resamples=method.resamples
        )
        low, high = max(0.0, found.low), min(1.0, found.high)
    return Mean(
        label=result.arm.label, mean=float(scores.mean()), low=float(low), high=float(high), examples=len(scores)
    )


def strongest(comparison: Comparison, labels: Sequence[str]) -> str:
    """The arm among these with the highest mean; the first of equals."""
    means = [comparison.result(label).mean for label in labels]
    return labels[int(np.argmax(means))]
