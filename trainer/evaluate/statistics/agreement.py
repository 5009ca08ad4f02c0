"""Agreement between a judge and people: Cohen's kappa, and how far the judge leans towards one side, with intervals.

The intervals were chosen by simulation: `python -m trainer.evaluate.judge_rates` prints the tables of JUDGES.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.errors import EvaluationInvalid
from trainer.evaluate.statistics import quantiles
from trainer.evaluate.statistics.paired import all_equal, as_array, sparse_interval, student_interval

CONFIDENCE: Final = 0.98
"""Of both intervals, two-sided. More than 95%, because every evaluation looks at the reviews again: a judge that is
exactly at a threshold then counts at one of 19 looks, after 100 to 1000 reviews, in about 5% of cases."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Cohen's kappa over ``pairs`` that both voted on; None if all votes are the same.

    ``observed``: the share of pairs on which they agree.
    """

    kappa: float | None
    low: float | None
    high: float | None
    observed: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Lean:
    """How much more a judge favours the candidate than people do: the mean difference of their scores, -1 to 1."""

    estimate: float
    low: float
    high: float


def agreement(judge: Sequence[str], people: Sequence[str], *, confidence: float = CONFIDENCE) -> Agreement:
    """Agreement of two lists of verdicts over the same pairs.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960), 37-46;
    the large-sample variance is that of J. L. Fleiss, J. Cohen and B. S. Everitt, Psychological Bulletin 72 (1969),
    323-327. It is too small where a judge nearly always agrees, and zero where it always
    does. So each end is the wider of that interval's and of Wilson's for the observed agreement, at the observed
    chance agreement (E. B. Wilson, JASA 22 (1927), 209-212).

    Raises:
        EvaluationInvalid: The lists are empty or of different lengths.
    """
    if not judge or len(judge) != len(people):
        raise EvaluationInvalid(
            f"agreement needs equally many votes of the judge and of people; got {len(judge)} and {len(people)}"
        )
    codes = {verdict: code for code, verdict in enumerate(sorted({*judge, *people}))}
    table = np.zeros((len(codes), len(codes)))
    for (judge_verdict, people_verdict), count in Counter(zip(judge, people, strict=True)).items():
        table[codes[judge_verdict], codes[people_verdict]] = count
    observed = float(np.trace(table)) / len(judge)
    if len(codes) == 1:
        return Agreement(None, None, None, observed, len(judge))
    z, shares = quantiles.normal(confidence), table / len(judge)
    beyond_chance = 1 - float(shares.sum(axis=0) @ shares.sum(axis=1))
    kappa = 1 - (1 - observed) / beyond_chance
    half_width = z * math.sqrt(_kappa_variance(shares, kappa) / len(judge))
    low, high = (1 - (1 - end) / beyond_chance for end in _wilson(observed, len(judge), z))
    return Agreement(
        kappa, max(-1.0, min(kappa - half_width, low)), min(1.0, max(kappa + half_width, high)), observed, len(judge)
    )


def _kappa_variance(shares: NDArray[np.float64], kappa: float) -> float:
    """The large-sample variance of kappa, times the number of pairs. ``shares``: of each pair of votes, square."""
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    chance, agreed = float(rows @ columns), np.diag(shares)
    margins = columns[:, None] + rows[None, :]
    on_diagonal = float(agreed @ (1 - (rows + columns) * (1 - kappa)) ** 2)
    apart = float((shares * margins**2).sum() - agreed @ np.diag(margins) ** 2)
    variance = on_diagonal + (1 - kappa) ** 2 * apart - (kappa - chance * (1 - kappa)) ** 2
    return max(0.0, variance) / (1 - chance) ** 2


def reviewer_agreement(pairs: Sequence[Sequence[str]], *, confidence: float) -> Agreement:
    """Agreement of several reviewers who need not be the same on every pair: Fleiss' kappa.

    J. L. Fleiss, Measuring nominal scale agreement among many raters, Psychological Bulletin 76 (1971), 378-382. The
    variance is that of K. L. Gwet, British Journal of Mathematical and Statistical Psychology 61 (2008), 29-48, for
    pairs drawn from many, with Student's quantile. It is zero where reviewers always agree, so each end is the wider of
    that interval's and of Wilson's for the observed agreement, as in `agreement`.

    Args:
        pairs: The verdicts on each pair, at least two and equally many on each.
        confidence: Two-sided.

    Returns:
        ``observed``: how often two reviewers of a pair chose the same.

    Raises:
        EvaluationInvalid: There are no pairs, or some have fewer verdicts than others or than two.
    """
    counts_of_pairs = {len(verdicts) for verdicts in pairs}
    if len(counts_of_pairs) != 1 or min(counts_of_pairs) < 2:
        raise EvaluationInvalid("the agreement of reviewers needs equally many verdicts, two or more, on each pair")
    reviewers, count = counts_of_pairs.pop(), len(pairs)
    options = sorted({verdict for verdicts in pairs for verdict in verdicts})
    table = np.array([[Counter(verdicts)[option] for option in options] for verdicts in pairs], dtype=np.float64)
    agreed = (table * (table - 1)).sum(axis=1) / (reviewers * (reviewers - 1))
    observed = float(agreed.mean())
    if len(options) == 1:
        return Agreement(None, None, None, observed, count)
    shares = table.mean(axis=0) / reviewers
    beyond_chance = 1 - float(shares @ shares)
    kappa = 1 - (1 - observed) / beyond_chance
    low, high = (1 - (1 - end) / beyond_chance for end in _wilson(observed, count, quantiles.normal(confidence)))
    if count > 1:
        chance = table @ shares / reviewers
        linear = (agreed - 1 + beyond_chance) / beyond_chance - 2 * (1 - kappa) * (
            chance - 1 + beyond_chance
        ) / beyond_chance
        error = math.sqrt(float(linear.var(ddof=1)) / count)
        half_width = quantiles.student(confidence, count - 1) * error
        low, high = min(low, kappa - half_width), max(high, kappa + half_width)
    return Agreement(kappa, max(-1.0, low), min(1.0, high), observed, count)


def _wilson(share: float, count: int, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    weight = z * z / count
    middle, half_width = share + weight / 2, math.sqrt(weight * share * (1 - share) + weight * weight / 4)
    return (middle - half_width) / (1 + weight), (middle + half_width) / (1 + weight)


def lean(judge: Sequence[float], people: Sequence[float], *, confidence: float = CONFIDENCE) -> Lean:
    """How much more the judge favours the candidate than people do, on the pairs that both voted on.

    The mean of the paired differences of their scores: a test of marginal homogeneity for ordered votes. Pairs on which
    both voted alike count as differences of zero. The interval is the wider, at each end, of Student's and
    `sparse_interval`: Student's alone is too narrow where the differences are few and all go one way, which is what a
    leaning judge's do.

    Args:
        judge: The judge's scores: 1 for the candidate, 0.5 for a tie, 0 for the base.
        people: The reviewers' scores of the same pairs.
        confidence: Two-sided.

    Raises:
        EvaluationInvalid: The lists are empty or of different lengths.
    """
    if not judge or len(judge) != len(people):
        raise EvaluationInvalid(
            f"a lean needs equally many scores of the judge and of people; got {len(judge)} and {len(people)}"
        )
    differences = as_array(judge) - as_array(people)
    ends = [sparse_interval(differences, confidence)]
    if not all_equal(differences):
        ends.append(student_interval(differences, confidence))
    return Lean(
        float(differences.mean()), max(-1.0, min(end[0] for end in ends)), min(1.0, max(end[1] for end in ends))
    )
