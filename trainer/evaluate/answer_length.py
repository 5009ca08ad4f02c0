"""Whether free-text answers are as long as the author's: a cut one has much in common with the whole one."""

from __future__ import annotations

from typing import Final

import numpy as np

from trainer.evaluate.compare import Comparison
from trainer.evaluate.metrics.base import words
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.statistics.paired import interval, unit_means
from trainer.runs.protocol import Frozen

LEAST: Final = 0.7
"""Share of the author's words that the answers must have, on average."""


class AnswerLength(Frozen):
    """The candidate's words as a share of the author's, with its interval."""

    share: float
    low: float
    high: float


def answer_length(comparison: Comparison, candidate: str, method: IntervalMethod) -> AnswerLength | None:
    """The total words of the candidate's answers over those of the references; None if these have no words.

    A ratio of means: its interval is that of the mean of answer - LEAST * reference in units of the mean reference,
    which lies above zero where the ratio lies above LEAST (E. C. Fieller, JRSS B 16 (1954), 175-185).
    """
    answers = np.array([len(words(answer)) for answer in comparison.result(candidate).answers], dtype=np.float64)
    references = np.array([len(words(question.reference)) for question in comparison.questions], dtype=np.float64)
    answers, references = unit_means(answers, comparison.units), unit_means(references, comparison.units)
    mean = float(references.mean())
    if mean == 0:
        return None
    surplus = (answers - LEAST * references) / mean
    bounds = interval(surplus, confidence=method.confidence, binary=False, seed=method.seed, resamples=method.resamples)
    return AnswerLength(
        share=float(answers.mean()) / mean, low=LEAST + float(bounds.low), high=LEAST + float(bounds.high)
    )
