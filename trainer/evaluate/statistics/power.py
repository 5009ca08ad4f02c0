"""Power: what a number of held-out examples can show, and how many more would be needed.

With a standard deviation s of the differences over n examples, the interval of a true difference d lies above the bound
b with probability `power` if d = b + (t_confidence + z_power) s / sqrt(n). For binary scores s² is the share of
discordant pairs less d² (R. J. Connor, Sample size for testing differences in proportions for the paired-sample
design, Biometrics 43 (1987), 207-211), and at least d of the pairs must be discordant.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import optimize, special

from trainer.evaluate.statistics import quantiles
from trainer.evaluate.statistics.noise import NO_RUNS, RunNoise, half_width
from trainer.evaluate.statistics.paired import Array, Bounds, wins_and_losses

MAX_EXAMPLES: Final = 100_000
"""A larger number of examples is not practical advice."""
MIN_EXAMPLES: Final = 2


@dataclass(frozen=True, slots=True)
class ScoreVariance:
    """The variance of a single example's difference, for planning.

    ``discordant`` is the share of pairs that differ, for binary scores; one more pair each way is counted than was
    observed (D. G. Bonett and R. M. Price, Journal of Educational and Behavioral Statistics 37 (2012), 479-488), so
    that arms that never differed are not taken for arms that cannot.
    """

    variance: float
    discordant: float | None = None

    def at(self, difference: float) -> float:
        """The variance of one example's difference if this is the true mean: s², or discordant share minus d²."""
        if self.discordant is None:
            return self.variance
        return max(self.discordant, abs(difference)) - difference * difference


def score_variance(differences: Array, *, binary: bool) -> ScoreVariance:
    """The variance of one example's difference, estimated from the observed ones.

    Binary scores, and scores of which fewer than two differ, get a pseudo-observation each way.
    """
    count = len(differences)
    wins, losses = wins_and_losses(differences)
    if binary:
        return ScoreVariance(0.0, (wins + losses + 2) / (count + 2))
    padded = np.concatenate([differences, [0.5, -0.5]]) if wins + losses < 2 else differences
    return ScoreVariance(float(np.var(padded, ddof=1)) if len(padded) > 1 else 0.25)


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """The targets of planning. ``noise`` between runs does not shrink with the number of examples."""

    bound: float
    confidence: float
    power: float
    noise: RunNoise = NO_RUNS


def detectable(variance: ScoreVariance, count: int, plan: PowerPlan) -> float | None:
    """The smallest true difference that `count` examples show to be above the bound; None if there is none up to 1.

    None for a single example: it has no variance.
    """

    def surplus(difference: float) -> float:
        return difference - plan.bound - _required_distance(variance, count, difference, plan)

    if count < MIN_EXAMPLES or surplus(1.0) < 0:
        return None
    return float(optimize.brentq(surplus, plan.bound, 1.0))


def examples_needed(variance: ScoreVariance, difference: float, plan: PowerPlan) -> int | None:
    """The total number of examples that tells a true `difference` from the bound; None above MAX_EXAMPLES."""
    gap = abs(difference - plan.bound)

    def surplus(count: float) -> float:
        return gap - _required_distance(variance, count, difference, plan)

    if surplus(MAX_EXAMPLES) < 0:
        return None
    if surplus(MIN_EXAMPLES) >= 0:
        return MIN_EXAMPLES
    return math.ceil(float(optimize.brentq(surplus, MIN_EXAMPLES, MAX_EXAMPLES, xtol=0.01)) - 0.05)


def examples_needed_alike(difference: float, plan: PowerPlan) -> int | None:
    """The same if all examples have this difference: when the interval z²/(n + z²) to both sides, widened by noise,
    excludes the bound. None above MAX_EXAMPLES."""
    gap, z = abs(difference - plan.bound), quantiles.normal(plan.confidence)

    def open_at(count: int) -> bool:
        return half_width(z / (count + z * z), plan.noise, plan.confidence) >= gap

    if open_at(MAX_EXAMPLES):
        return None
    return bisect.bisect_left(range(MAX_EXAMPLES + 1), True, lo=MIN_EXAMPLES, key=lambda count: not open_at(count))


def examples_needed_by_interval(count: int, difference: float, bounds: Bounds, bound: float) -> int | None:
    """The total number of examples at which an interval that contains the bound excludes it, shrinking with their root.

    Planning by the variance may ask for no more examples than there are if the interval is wider than planned.
    0 if the interval already excludes the bound; None above MAX_EXAMPLES.
    """
    if not bounds.low <= bound < bounds.high:
        return 0
    gap = abs(difference - bound)
    half = difference - bounds.low if difference > bound else bounds.high - difference
    if gap == 0 or count * (half / gap) ** 2 > MAX_EXAMPLES:
        return None
    return max(count + 1, math.ceil(count * (half / gap) ** 2))


def _required_distance(variance: ScoreVariance, count: float, difference: float, plan: PowerPlan) -> float:
    """How far from the bound a true difference must be for its interval to exclude it with the planned power."""
    error = math.sqrt(variance.at(difference) / count)
    degrees = math.inf if variance.discordant is not None else count - 1
    half = half_width(error, plan.noise, plan.confidence, degrees)
    return half + float(special.ndtri(plan.power)) * math.hypot(error, math.sqrt(plan.noise.variance))
