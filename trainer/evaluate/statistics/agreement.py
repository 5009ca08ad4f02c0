"""Agreement between a judge and people: Cohen's kappa with its interval."""

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
    """Cohen's kappa over ``pairs`` that both voted on; None if all votes are the same.

    ``observed``: the share of pairs on which they agree.
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
        raise EvaluationInvalid(
            f"agreement needs equally many votes of the judge and of people; got {len(judge)} and {len(people)}"
        )
    codes = {verdict: code for code, verdict in enumerate(sorted({*judge, *people}))}
    observed = sum(
        judge_verdict == people_verdict for judge_verdict, people_verdict in zip(judge, people, strict=True)
    ) / len(judge)
    if len(codes) == 1:
        return Agreement(None, None, None, observed, len(judge))
    table = np.zeros((len(codes), len(codes)))
    for judge_verdict, people_verdict in zip(judge, people, strict=True):
        table[codes[judge_verdict], codes[people_verdict]] += 1
    with np.errstate(invalid="ignore"):  # with full agreement the variance is zero up to rounding
        result = cohens_kappa(table)
    kappa = float(result.kappa)
    half_width = quantiles.normal(confidence) * math.sqrt(max(0.0, float(result.var_kappa)))
    return Agreement(kappa, max(-1.0, kappa - half_width), min(1.0, kappa + half_width), observed, len(judge))
