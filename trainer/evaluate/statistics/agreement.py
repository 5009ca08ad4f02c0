"""How far a judge agrees with people: Cohen's kappa with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.stats.inter_rater import cohens_kappa

from trainer.errors import EvaluationInvalid
from trainer.evaluate.statistics import quantiles


@dataclass(frozen=True, slots=True)
class Agreement:
    """Cohen's kappa over `pairs` that both looked at; None where both always said the same one thing.

    ``observed`` is the share of pairs on which they agree.
    """

    kappa: float | None
    low: float | None
    high: float | None
    observed: float
    pairs: int


def agreement(judge: Sequence[str], people: Sequence[str], *, confidence: float = 0.95) -> Agreement:
    """Agreement of two lists of verdicts over the same pairs.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960), 37-46;
    the large-sample variance is that of J. L. Fleiss, J. Cohen and B. S. Everitt, Psychological Bulletin 72 (1969),
    323-327, as statsmodels computes it.

    Raises:
        EvaluationInvalid: The lists are empty or of different lengths.
    """
    if not judge or len(judge) != len(people):
        raise EvaluationInvalid(f"agreement needs as many verdicts of people as of the judge, found {len(people)}")
    words = {word: code for code, word in enumerate(sorted({*judge, *people}))}
    observed = sum(one == other for one, other in zip(judge, people, strict=True)) / len(judge)
    if len(words) == 1:
        return Agreement(None, None, None, observed, len(judge))
    table = np.zeros((len(words), len(words)))
    for one, other in zip(judge, people, strict=True):
        table[words[one], words[other]] += 1
    with np.errstate(invalid="ignore"):  # of full agreement the variance is zero, or what rounding makes of it
        found = cohens_kappa(table)
    kappa = float(found.kappa)
    half = quantiles.normal(confidence) * math.sqrt(max(0.0, float(found.var_kappa)))
    return Agreement(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), observed, len(judge))
