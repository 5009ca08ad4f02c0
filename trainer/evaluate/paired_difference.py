"""The difference between two rows of scores over the same examples, with its interval and its power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import Field
from statsmodels.stats.proportion import proportion_confint

from adapters.protocol.reports import ArmDifference, ArmMean
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

Lean = tuple[float, float]
"""The interval of how much more a judge favours the candidate than people do; 0.1 is 10 points of 100."""
NO_LEAN: Final[Lean] = (0.0, 0.0)


class IntervalMethod(Frozen):
    """How intervals are computed. ``confidence``: two-sided. ``power``: what planning aims for."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    power: float = Field(0.8, gt=0.5, lt=1)
    resamples: int = Field(RESAMPLES, ge=200, le=100_000)
    seed: int = 0


def arm_difference(
    comparison: Comparison,
    of: str,
    against: str,
    method: IntervalMethod,
    *,
    bound: float = 0.0,
    lean: Lean = NO_LEAN,
) -> ArmDifference:
    """How much higher ``of`` scores than ``against``, over all examples; see `paired_difference`."""
    of_result, against_result = comparison.result(of), comparison.result(against)
    return paired_difference(
        (of, of_result.scores, noise_of(of_result)),
        (against, against_result.scores, noise_of(against_result)),
        binary=comparison.binary,
        method=method,
        bound=bound,
        lean=lean,
    )


def paired_difference(
    of: tuple[str, Array, RunNoise],
    against: tuple[str, Array, RunNoise],
    *,
    binary: bool,
    method: IntervalMethod,
    bound: float = 0.0,
    lean: Lean = NO_LEAN,
) -> ArmDifference:
    """The difference between two rows of scores, each given as (label, scores, noise between runs).

    Args:
        of: The row that should be higher.
        against: The other row, over the same examples.
        binary: All scores are 0 or 1.
        method: How the interval is computed.
        bound: What the lower end has to be above, for planning.
        lean: Of the judge, if its votes are the scores; the interval is widened by it, and planning allows for it.
    """
    (of_label, of_scores, of_noise), (against_label, against_scores, against_noise) = of, against
    differences = of_scores - against_scores
    estimate, noise = float(differences.mean()), combined_noise([of_noise, against_noise])
    bounds = interval(
        differences, confidence=method.confidence, binary=binary, seed=method.seed, resamples=method.resamples
    )
    bounds = widen_by_noise(estimate, bounds, noise, method.confidence)
    wins, losses = wins_and_losses(differences)
    plan = power.PowerPlan(bound + max(0.0, lean[1]), method.confidence, method.power, noise)
    variance = power.score_variance(differences, binary=binary)
    difference = ArmDifference(
        of=of_label,
        against=against_label,
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
        detectable=power.detectable(variance, len(differences), plan),
        needed=_needed(differences, bounds, variance, plan, binary=binary),
    )
    return allow_for_lean(difference, lean)


def allow_for_lean(difference: ArmDifference, lean: Lean) -> ArmDifference:
    """A difference between a judge's scores, its interval widened by what the judge's lean could explain.

    A lean towards the candidate of at most ``lean[1]`` may have raised the scores by that much, and one towards the
    base of at most ``-lean[0]`` may have lowered them. Adding the ends of two intervals is conservative.
    """
    towards_candidate, towards_base = max(0.0, lean[1]), max(0.0, -lean[0])
    if not towards_candidate and not towards_base:
        return difference
    return difference.model_copy(
        update={
            "low": difference.low - towards_candidate,
            "high": difference.high + towards_base,
            "method": f"{difference.method}; widened by the judge's possible lean",
        }
    )


def _needed(
    differences: Array, bounds: Bounds, variance: power.ScoreVariance, plan: power.PowerPlan, *, binary: bool
) -> int | None:
    """Total number of examples needed; more than there are if the interval contains the bound."""
    estimate = float(differences.mean())
    if not binary and all_equal(differences):
        return power.examples_needed_alike(estimate, plan)
    estimates = (
        power.examples_needed(variance, estimate, plan),
        power.examples_needed_by_interval(len(differences), estimate, bounds, plan.bound),
    )
    finite = [needed for needed in estimates if needed is not None]
    return max(finite) if len(finite) == len(estimates) else None


def noise_of(result: ArmResult) -> RunNoise:
    """An arm's noise between its runs; NO_RUNS if there was only one."""
    return run_noise([as_array(run) for run in result.runs]) if len(result.runs) > 1 else NO_RUNS


def mean_of(result: ArmResult, *, binary: bool, method: IntervalMethod) -> ArmMean:
    """An arm's mean with an interval over examples: Wilson's for binary scores, else as for differences."""
    scores = result.scores
    if binary:
        alpha = 1 - method.confidence
        low, high = proportion_confint(int(scores.sum()), len(scores), alpha=alpha, method="wilson")
    else:
        bounds = interval(
            scores, confidence=method.confidence, binary=False, seed=method.seed, resamples=method.resamples
        )
        low, high = max(0.0, bounds.low), min(1.0, bounds.high)
    return ArmMean(
        label=result.arm.label, mean=float(scores.mean()), low=float(low), high=float(high), examples=len(scores)
    )


def strongest(comparison: Comparison, labels: Sequence[str]) -> str:
    """The label of the arm with the highest mean; the first if several are equal."""
    means = [comparison.result(label).mean for label in labels]
    return labels[int(np.argmax(means))]
