"""The mean of paired differences with an interval: how much better one arm is than another on the same examples.

The intervals were chosen by simulation (STATISTICS.md, "Intervals"; the simulations are in the tests).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from trainer.evaluate.statistics import quantiles

Array = NDArray[np.float64]

RESAMPLES: Final = 5000
BATCH: Final = 500
"""Resamples computed at once: memory is BATCH times the number of examples."""
MIN_TAIL: Final = 1e-6
"""Minimum tail of the bootstrap: with two or three values it would be thinner, where no resample lies."""
EDGE: Final = 1e-9
Units = Sequence[int]
"""The number of each example's unit, from 0; examples of one unit are not independent."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The ends of an interval, and the method's name."""

    low: float
    high: float
    method: str


def unit_means(values: Array, units: Units | None) -> Array:
    """The mean of each unit's values, in the order of the units' numbers; None: every value is its own unit.

    Each unit then counts once, whatever its size: the mean over units is what is estimated. Means of independent units
    are independent, so that any interval for independent values applies to them (the cluster-level analysis of
    A. Donner and N. Klar, Design and Analysis of Cluster Randomization Trials in Health Research (2000), chapter 6).

    Args:
        values: One per example.
        units: One per value; numbers that do not occur are skipped.
    """
    if units is None:
        return values
    _, places, counts = np.unique(np.asarray(units), return_inverse=True, return_counts=True)
    return np.bincount(places, weights=values, minlength=len(counts)) / counts


def wins_and_losses(differences: Array) -> tuple[int, int]:
    """The numbers of differences above zero and below zero."""
    return int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))


def interval(
    differences: Array,
    *,
    confidence: float,
    binary: bool,
    seed: int,
    resamples: int = RESAMPLES,
    reach: tuple[float, float] | None = None,
) -> Bounds:
    """An interval of the mean of paired differences, each from -1 to 1.

    Binary scores get Tango's score interval. All others get, at each end, the widest of the BCa bootstrap, Student's
    interval, `sparse_interval` and, if the reach is known, `unseen_interval`. If all differences are equal there is
    nothing to resample, and `sparse_interval` alone bounds what this many examples could have missed.

    Args:
        differences: One per example, in order.
        confidence: Two-sided, such as 0.95.
        binary: Every difference is -1, 0 or 1.
        seed: Of the resampling.
        resamples: Of the bootstrap.
        reach: The loss and the gain that one more example could show, as a rule; None if unknown.
    """
    count = len(differences)
    if binary:
        wins, losses = wins_and_losses(differences)
        low, high = tango_interval(wins, losses, count, confidence)
        return Bounds(low, high, "Tango's score interval for paired proportions")
    mean, sparse_bounds = float(differences.mean()), sparse_interval(differences, confidence)
    if all_equal(differences):
        return Bounds(*sparse_bounds, "all differences alike: Tango's interval for none")
    ends = [
        student_interval(differences, confidence),
        bca_interval(differences, confidence, seed=seed, resamples=resamples),
    ]
    if reach is not None:
        ends.append(unseen_interval(differences, confidence, reach))
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    method = "paired BCa bootstrap, nowhere narrower than Student's"
    if sparse_bounds[0] < low or sparse_bounds[1] > high:
        method += ", nor than few differences allow"
    return Bounds(min(low, sparse_bounds[0], mean), max(high, sparse_bounds[1], mean), method)


def all_equal(differences: Array) -> bool:
    """Whether the differences lie within EDGE of each other; true of fewer than two."""
    return len(differences) < 2 or float(np.ptp(differences)) < EDGE


def unseen_interval(differences: Array, confidence: float, reach: tuple[float, float]) -> tuple[float, float]:
    """Student's interval if one more example had shown a loss of full size (low end) or a gain of it (high end).

    Rare large losses among small gains are often missing from a sample, which then looks sure of its gain: with losses
    of the whole scale in 3% of examples, 30 examples show none in 40% of cases. One example more is what a sample of
    this size cannot exclude. It costs little where answers cannot lose much: a loss is at most the score of what an
    answer is compared with, and overlap scores are low.

    Args:
        differences: Two or more.
        confidence: Two-sided.
        reach: The size of such a loss (positive) and gain.
    """
    loss, gain = reach
    low = student_interval(np.append(differences, -loss), confidence)[0]
    high = student_interval(np.append(differences, gain), confidence)[1]
    return low, high


def sparse_interval(differences: Array, confidence: float) -> tuple[float, float]:
    """An interval for mostly equal differences, where a few that differ say little about unseen ones.

    Tango's interval for the examples above and below the median, each counted as a difference of one size: the mean
    size of those that were seen and of z² of size 1 that were not, as far as examples are alike. Where no example
    differs this is Tango's interval for no discordant pair, z²/(n + z²) to both sides, and one small difference makes
    it no narrower; where nearly all differ it is narrower than Student's. The weight z² is that of the pseudo-counts of
    A. Agresti and B. A. Coull, The American Statistician 52 (1998), 119-126.
    """
    count, mean, weight = len(differences), float(differences.mean()), quantiles.normal(confidence) ** 2
    apart = differences - np.median(differences)
    apart = np.where(np.abs(apart) < EDGE, 0.0, apart)
    above, below = wins_and_losses(apart)
    unseen = weight * (count - above - below) / count
    size = (float(np.abs(apart).sum()) + unseen) / (above + below + weight)
    low, high = tango_interval(above, below, count, confidence)
    middle = (above - below) / count
    # differences of log-probabilities may be larger than 1
    return (
        max(min(-1.0, float(differences.min())), mean - size * (middle - low)),
        min(max(1.0, float(differences.max())), mean + size * (high - middle)),
    )


def tango_interval(wins: int, losses: int, count: int, confidence: float) -> tuple[float, float]:
    """The score interval of a difference of paired proportions: all differences that the score test does not reject.

    At a difference of zero the test is McNemar's, so interval and test never disagree. Source: T. Tango,
    Equivalence test and confidence interval for the difference in proportions for the paired-sample design, Statistics
    in Medicine 17 (1998), 891-908, equations 9 to 13. It is among those that M. W. Fagerland, S. Lydersen and P. Laake
    recommend, Statistics in Medicine 33 (2014), 2850-2875.

    Args:
        wins: Pairs where the first alone is right.
        losses: Pairs where the second alone is right.
        count: All pairs.
        confidence: Two-sided.
    """
    z = quantiles.normal(confidence)
    estimate = (wins - losses) / count

    def beyond(difference: float, bound: float) -> float:
        # (statistic - bound) times the standard error: the same sign, and finite where the error is zero
        error = math.sqrt(_tango_variance(wins, losses, count, difference))
        return wins - losses - count * difference - bound * error

    # next to the estimate, not at it: if no pair or every pair is discordant, the error is zero there
    low, high = -1.0, 1.0
    if estimate - EDGE > -1 + EDGE and beyond(-1 + EDGE, z) > 0 > beyond(estimate - EDGE, z):
        low = float(optimize.brentq(beyond, -1 + EDGE, estimate - EDGE, args=(z,)))
    if estimate + EDGE < 1 - EDGE and beyond(1 - EDGE, -z) < 0 < beyond(estimate + EDGE, -z):
        high = float(optimize.brentq(beyond, estimate + EDGE, 1 - EDGE, args=(-z,)))
    return low, high


def _tango_variance(wins: int, losses: int, count: int, difference: float) -> float:
    """Of wins minus losses, with the share of losses that is likeliest where `difference` holds."""
    linear = -wins - losses + (2 * count - wins + losses) * difference
    constant = -losses * difference * (1 - difference)
    root = math.sqrt(max(linear * linear - 8 * count * constant, 0.0))
    likeliest = (root - linear) / (4 * count)
    return max(count * (2 * likeliest + difference * (1 - difference)), 0.0)


def mcnemar_p(wins: int, losses: int) -> float:
    """The exact two-sided p-value of McNemar's test: is a discordant pair as likely a win as a loss? 1 without any."""
    if wins + losses == 0:
        return 1.0
    return float(mcnemar([[0, wins], [losses, 0]], exact=True).pvalue)


def student_interval(values: Array, confidence: float) -> tuple[float, float]:
    """Student's two-sided interval of a mean, mean ± t s/√n with n - 1 degrees of freedom; needs two values or more."""
    count = len(values)
    half = quantiles.student(confidence, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    mean = float(values.mean())
    return mean - half, mean + half


def bca_interval(values: Array, confidence: float, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of a mean, widened for small samples.

    The level is raised so that a normal quantile becomes sqrt(n / (n - 1)) times Student's: without it the bootstrap is
    too narrow in small samples. Sources: B. Efron, Better bootstrap confidence intervals, JASA 82 (1987), 171-185;
    T. C. Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015), 371-386,
    section 4.1.

    Args:
        values: Two or more, not all equal.
        confidence: Two-sided.
        seed: Of the resampling.
        resamples: How many.
    """
    count = len(values)
    quantile = math.sqrt(count / (count - 1)) * quantiles.student(confidence, count - 1)
    tail = float(stats.norm.sf(quantile))
    if tail < MIN_TAIL:
        return student_interval(values, confidence)
    result = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=1 - 2 * tail,
        n_resamples=resamples,
        batch=BATCH,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    # no resample may be as far out as the estimate where one value in many differs; Student's then stands alone
    low, high = float(result.low), float(result.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else student_interval(values, confidence)


def as_array(values: Sequence[float]) -> Array:
    """The values as float64."""
    return np.asarray(values, dtype=np.float64)
