"""Every arm's scores, question by question, so that a ladder can compare arms of several evaluations."""

from __future__ import annotations

from typing import Final

import numpy as np

from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.control_arms import derangements
from trainer.evaluate.metrics.base import Batched, Metric
from trainer.evaluate.paired_difference import noise_of
from trainer.evaluate.revalidation import question_key
from trainer.evaluate.scored_arms import ArmScores, ScoredArm
from trainer.evaluate.statistics.paired import Units

CONTROL_DRAWS: Final = 10
"""Assignments of answers to other questions that the control is the mean of."""


def arm_scores(comparison: Comparison, metric: Metric, *, concurrency: int, seed: int = 0) -> ArmScores:
    """The scores of every arm of a comparison.

    Args:
        comparison: The comparison.
        metric: Its metric, for the control.
        concurrency: How many requests were under way at any time.
        seed: Decides which question each answer of the control is assigned to.
    """
    references = [question.reference for question in comparison.questions]
    total = sum(result.seconds for result in comparison.results)
    return ArmScores(
        metric=comparison.metric,
        binary=comparison.binary,
        questions=tuple(question_key(question) for question in comparison.questions),
        asked=tuple(question.last_message for question in comparison.questions),
        references=tuple(references),
        units=comparison.units,
        arms=tuple(
            _scored(result, comparison, metric, references, total=total, seed=seed) for result in comparison.results
        ),
        # not by the clock: a worker that was killed has answers that another one asked for
        wall_seconds=total / concurrency,
    )


def _scored(
    result: ArmResult, comparison: Comparison, metric: Metric, references: list[str], *, total: float, seed: int
) -> ScoredArm:
    noise, requests = noise_of(result, comparison.units), sum(len(run) for run in result.runs)
    return ScoredArm(
        label=result.arm.label,
        model=result.version or result.arm.model,
        scores=result.runs[0],
        control=control_score(result.answers, references, metric, seed=seed, units=comparison.units),
        answers=result.answers,
        noise=noise.variance,
        degrees=noise.degrees,
        prompt_tokens=result.prompt_tokens / requests,
        completion_tokens=result.completion_tokens / requests,
        seconds=result.seconds / requests,
        slot_share=result.seconds / total if total else 0.0,
        requests=requests,
        cut=result.cut,
    )


def control_score(
    answers: tuple[str, ...], references: list[str], metric: Metric, *, seed: int, units: Units | None
) -> float:
    """The mean score of the answers at the references of other units' questions; 0 for a single question."""
    if len(answers) < 2:
        return 0.0
    if isinstance(metric, Batched):
        metric.prepare([*answers, *references])
    draws = derangements(len(answers), CONTROL_DRAWS, seed, units)
    return float(
        np.mean(
            [
                metric.score(answers[source], reference)
                for sources in draws
                for source, reference in zip(sources, references, strict=True)
            ]
        )
    )
