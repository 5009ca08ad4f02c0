"""What a held-out of this size can show, and how many examples more would do.

With a spread s of the differences over n examples, a true difference of d ends with an interval above the bound b with
probability `power` where d = b + (t_confidence + z_power) s / sqrt(n). For right-or-wrong scores s² is the share of
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
"""More than this many examples is no advice."""
MIN_EXAMPLES: Final = 2


@dataclass(frozen=True, slots=True)
class ScoreVariance:
    """How the differences spread, for planning; variances of a single example's difference.

    ``discordant`` is the share of pairs that differ, for right-or-wrong scores; one pair more each way is counted than
    was seen (D. G. Bonett and R. M. Price, Journal of Educational and Behavioral Statistics 37 (2012), 479-488), so
    that arms that never differed are not taken for arms that cannot.
    """

    variance: float
    discordant: float | None = None

    def at(self, difference: float) -> float:
        """The variance where the true difference is this."""
        if self.discordant is None:
            return self.variance
        return max(self.discordant, abs(difference)) - difference * difference


def score_variance(differences: Array, *, binary: bool) -> ScoreVariance:
    """The spread of the differences that were seen."""
    count = len(differences)
    wins, losses = wins_and_losses(differences)
    if binary:
        return ScoreVariance(0.0, (wins + losses + 2) / (count + 2))
    padded = np.concatenate([differences, [0.5, -0.5]]) if wins + losses < 2 else differences
    return ScoreVariance(float(np.var(padded, ddof=1)) if len(padded) > 1 else 0.25)


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """What is wanted of a comparison. ``noise`` between runs stays, however many examples there are."""

    bound: float
    confidence: float
    power: float
    noise: RunNoise = NO_RUNS


def detectable(found: ScoreVariance, count: int, plan: PowerPlan) -> float | None:
    """The smallest true difference that `count` examples show to lie above the bound; None where none up to 1 does.

    Of one example none does: it says nothing of how examples differ.
    """

    def lacking(difference: float) -> float:
        return difference - plan.bound - _required_distance(found, count, difference, plan)

    if count < MIN_EXAMPLES or lacking(1.0) < 0:
        return None
    return float(optimize.brentq(lacking, plan.bound, 1.0))


def examples_needed(found: ScoreVariance, difference: float, plan: PowerPlan) -> int | None:
    """Examples (all, not more) after which a true `difference` is told from the bound; None above MOST_EXAMPLES."""
    gap = abs(difference - plan.bound)

    def lacking(count: float) -> float:
        return gap - _required_distance(found, count, difference, plan)

    if lacking(MAX_EXAMPLES) < 0:
        return None
    if lacking(MIN_EXAMPLES) >= 0:
        return MIN_EXAMPLES
    return math.ceil(float(optimize.brentq(lacking, MIN_EXAMPLES, MAX_EXAMPLES, xtol=0.01)) - 0.05)


def examples_needed_alike(difference: float, plan: PowerPlan) -> int | None:
    """The same where every example has this same difference: after how many the interval for none that differs, z²/(n +
    z²) to both sides and widened by noise, is clear of the bound. None above MOST_EXAMPLES."""
    gap, z = abs(difference - plan.bound), quantiles.normal(plan.confidence)

    def open_at(count: int) -> bool:
        return half_width(z / (count + z * z), plan.noise, plan.confidence) >= gap

    if open_at(MAX_EXAMPLES):
        return None
    return bisect.bisect_left(range(MAX_EXAMPLES + 1), True, lo=MIN_EXAMPLES, key=lambda count: not open_at(count))


def examples_needed_by_interval(count: int, difference: float, bounds: Bounds, bound: float) -> int | None:
    """Examples (all) after which an interval that holds the bound is clear of it, if it shrinks with their root.

    Planning by the spread may call for no more than there are, where the interval is wider than it had planned for.
    0 where the interval is clear of the bound; None above MOST_EXAMPLES.
    """
    if not bounds.low <= bound < bounds.high:
        return 0
    gap = abs(difference - bound)
    half = difference - bounds.low if difference > bound else bounds.high - difference
    if gap == 0 or count * (half / gap) ** 2 > MAX_EXAMPLES:
        return None
    return max(count + 1, math.ceil(count * (half / gap) ** 2))


def _required_distance(found: ScoreVariance, count: float, difference: float, plan: PowerPlan) -> float:
    """How far from the bound a true difference must be, for its interval to be clear of it as often as planned."""
    error = math.sqrt(found.at(difference) / count)
    degrees = math.inf if found.discordant is not None else count - 1
    half = half_width(error, plan.noise, plan.confidence, degrees)
    return half + float(special.ndtri(plan.power)) * math.hypot(error, math.sqrt(plan.noise.variance))
