"""A judge as the metric that decides: every other arm's answers are shown to it beside the candidate's.

A judge gives no answer a score of its own, it prefers one of two. So an arm's score on an example is how it fares
against the candidate: 1 where it is preferred, 0 where the candidate is, ½ for a tie; the candidate's is ½, against
itself. What the candidate is better by is then how often it is preferred, over even, and everything that is made of
paired differences (intervals, the strongest base, the controls, planning) holds as it does for other metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.evaluate.compare import Comparison, OnStage
from trainer.evaluate.control_arms import Control, constant_and_permuted, derangements
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.paired_difference import strongest
from trainer.evaluate.spec import EvaluationSpec, Judge, JudgeResult, Preference

CONSTANT: Final = "one answer to everything"
PERMUTED: Final = "answers mixed up"
REASSIGNED: Final = "its own answers mixed up"


@dataclass(frozen=True, slots=True)
class PreferenceScores:
    """A comparison with a judge's scores, the controls under them, and what the judge says of the strongest base."""

    comparison: Comparison
    form: tuple[Control, ...]
    judged: JudgeResult


async def score_by_preference(
    comparison: Comparison, spec: EvaluationSpec, judge: Judge, on_stage: OnStage | None = None
) -> PreferenceScores:
    """Have a judge score a comparison.

    The controls' answers are the author's to other questions: the one that is most like the others by its wording, or
    the most frequent, and one way to mix them up (each way costs two questions an example), under which none is given
    to its own question. The candidate's own answers are mixed up in the same way.

    Args:
        comparison: With all arms' answers.
        spec: With a candidate.
        judge: Who prefers.
        on_stage: Hears of the progress; may raise to end it.
    """
    candidate = spec.candidate or ""
    mine, short = comparison.result(candidate).answers, False

    async def against(other: Sequence[str], name: str) -> tuple[float, ...]:
        nonlocal short
        found: Preference = await judge.prefer(comparison.questions, mine, other, name, on_stage)
        short = short or not found.enough
        return tuple(1 - score for score in found.scores)

    results = []
    for result in comparison.results:
        label = result.arm.label
        scores = (0.5,) * len(mine) if label == candidate else await against(result.answers, label)
        results.append(result.model_copy(update={"runs": (scores,)}))  # what is asked again is not shown to the judge
    scored = comparison.model_copy(update={"results": tuple(results)})
    references = [question.reference for question in comparison.questions]
    said = constant_and_permuted(references, RougeL(), taught=spec.taught, seed=spec.rules.method.seed)[0].answer or ""
    deranged = derangements(len(references), 1, spec.rules.method.seed)
    whose = deranged[0].tolist() if deranged else [0]
    form = (
        Control(kind="constant", scores=await against([said] * len(references), CONSTANT), answer=said),
        Control(kind="permuted", scores=await against([references[at] for at in whose], PERMUTED)),
        Control(kind="reassigned", scores=await against([mine[at] for at in whose], REASSIGNED)),
    )
    judged = await judge.judge(comparison, candidate, strongest(scored, spec.bases), on_stage)
    if judged.counted and short:
        why = f"The judge {judge.name} is not counted: of one arm too many votes could not be had or read."
        judged = judged.model_copy(
            update={"counted": False, "missed": True, "sentence": f"{why} Of the base: {judged.sentence}"}
        )
    return PreferenceScores(scored, form, judged)
