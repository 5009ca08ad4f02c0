"""The difference between two rows of scores over the same examples, with its interval and its power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from pydantic import Field
from statsmodels.stats.proportion import proportion_confint

from adapters.protocol.reports import ArmDifference, ArmMean
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.metrics.choose import JUDGE
from trainer.evaluate.statistics import power
from trainer.evaluate.statistics.noise import NO_RUNS, RunNoise, combined_noise, run_noise, widen_by_noise
from trainer.evaluate.statistics.paired import (
    RESAMPLES,
    Array,
    Bounds,
    Units,
    all_equal,
    as_array,
    interval,
    mcnemar_p,
    unit_means,
    wins_and_losses,
)
from trainer.runs.protocol import Frozen

Scale = Literal["score", "preference", "log_probability"]
"""Scores are from 0 to 1; of a preference the candidate's own is always one half; log-probabilities have no limits."""
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
    cut_is_right: bool = False,
) -> ArmDifference:
    """How much higher ``of`` scores than ``against``, over all examples; see `paired_difference`.

    ``cut_is_right``: answers of ``against`` that were cut count as right.
    """
    of_result, against_result, units = comparison.result(of), comparison.result(against), comparison.units
    scores = against_result.scores_if_cut_were_right if cut_is_right else against_result.scores
    return paired_difference(
        (of, of_result.scores, noise_of(of_result, units)),
        (against, scores, noise_of(against_result, units)),
        binary=comparison.binary,
        method=method,
        bound=bound,
        units=units,
        scale=scale_of(comparison.metric),
        lean=lean,
    )


def scale_of(metric: str) -> Scale:
    """The scale of a metric's scores."""
    return "preference" if metric == JUDGE else "score"


def _reach(against: Array, scale: Scale) -> tuple[float, float] | None:
    """The loss and the gain that one more example could show: the root mean square over the examples that were seen.

    An answer scores from 0 to 1, so it can lose what the other one scored on that example, and gain the rest. The
    root mean square is near the largest where a few examples have much to lose, and small where none has.
    """
    if scale == "log_probability":
        return None
    if scale == "preference":
        return 0.5, 0.5
    return float(np.sqrt(np.mean(against**2))), float(np.sqrt(np.mean((1 - against) ** 2)))


def paired_difference(
    of: tuple[str, Array, RunNoise],
    against: tuple[str, Array, RunNoise],
    *,
    binary: bool,
    method: IntervalMethod,
    bound: float = 0.0,
    units: Units | None = None,
    scale: Scale = "score",
    lean: Lean = NO_LEAN,
) -> ArmDifference:
    """The difference between two rows of scores, each given as (label, scores, noise between runs).

    Where examples share a unit, all numbers are of units: each counts once, with the mean of its examples.

    Args:
        of: The row that should be higher.
        against: The other row, over the same examples.
        binary: All scores are 0 or 1.
        method: How the interval is computed.
        bound: What the lower end has to be above, for planning.
        units: Which examples are not independent; None if all are.
        scale: Of the scores.
        lean: Of the judge, if its votes are the scores; the interval is widened by it, and planning allows for it.
    """
    (of_label, of_row, of_noise), (against_label, against_row, against_noise) = of, against
    of_scores, against_scores = unit_means(of_row, units), unit_means(against_row, units)
    differences = of_scores - against_scores
    # a unit of several examples may have any mean
    binary = binary and bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
    estimate, noise = float(differences.mean()), combined_noise([of_noise, against_noise])
    bounds = _bounds(differences, noise, method, binary=binary, reach=_reach(against_scores, scale))
    wins, losses = wins_and_losses(differences)
    plan = power.PowerPlan(bound + max(0.0, lean[1]), method.confidence, method.power, noise)
    planned = _planned(differences, bounds, plan, binary=binary)
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
        detectable=planned.detectable,
        needed=planned.needed,
        needed_if_higher=planned.if_higher,
        needed_if_lower=planned.if_lower,
    )
    return allow_for_lean(difference, lean)


def _bounds(
    differences: Array, noise: RunNoise, method: IntervalMethod, *, binary: bool, reach: tuple[float, float] | None
) -> Bounds:
    """The interval of the mean difference, widened by the noise between runs."""
    bounds = interval(
        differences,
        confidence=method.confidence,
        binary=binary,
        seed=method.seed,
        resamples=method.resamples,
        reach=reach,
    )
    return widen_by_noise(float(differences.mean()), bounds, noise, method.confidence)


class _Planned(NamedTuple):
    """What this many examples can show, and how many would be needed; see `ArmDifference`."""

    detectable: float | None
    needed: int | None
    if_higher: int | None
    if_lower: int | None


def _planned(differences: Array, bounds: Bounds, plan: power.PowerPlan, *, binary: bool) -> _Planned:
    variance = power.score_variance(differences, binary=binary)
    needed = _needed(differences, bounds, variance, plan, binary=binary)
    higher, lower = _needed_range(differences, variance, plan, needed)
    return _Planned(power.detectable(variance, len(differences), plan), needed, higher, lower)


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


def _needed_range(
    differences: Array, variance: power.ScoreVariance, plan: power.PowerPlan, needed: int | None
) -> tuple[int | None, int | None]:
    """The numbers of examples if the true difference is one standard error further from the bound, and one closer."""
    if needed is None:
        return None, None
    estimate = float(differences.mean())
    error = math.sqrt(variance.at(estimate) / len(differences))
    away = error if estimate > plan.bound else -error
    further = power.examples_needed(variance, max(-1.0, min(1.0, estimate + away)), plan)
    crosses = abs(estimate - plan.bound) <= error
    closer = None if crosses else power.examples_needed(variance, estimate - away, plan)
    return min(needed, further or needed), None if closer is None else max(needed, closer)


def noise_of(result: ArmResult, units: Units | None = None) -> RunNoise:
    """An arm's noise between its runs; NO_RUNS if there was only one."""
    if len(result.runs) < 2:
        return NO_RUNS
    width = min(len(run) for run in result.runs)
    shared = None if units is None else units[:width]
    return run_noise([unit_means(as_array(run[:width]), shared) for run in result.runs])


def mean_of(result: ArmResult, *, binary: bool, method: IntervalMethod, units: Units | None = None) -> ArmMean:
    """An arm's mean with an interval over examples (or units): Wilson's for binary scores, else as for differences."""
    scores = unit_means(result.scores, units)
    if binary and bool(np.isin(scores, (0.0, 1.0)).all()):
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
    means = [comparison.mean(label) for label in labels]
    return labels[int(np.argmax(means))]
