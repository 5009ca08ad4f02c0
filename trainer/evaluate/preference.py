"""A judge as the primary metric: it compares every other arm's answers with the candidate's.

A judge does not score an answer by itself, it prefers one of two. So an arm's score on an example is its result against
the candidate: 1 if the arm is preferred, 0 if the candidate is, ½ for a tie; the candidate's own score is ½. The
difference is then how often the candidate is preferred, minus one half, and everything computed from paired differences
(intervals, the strongest base, the controls, planning) works as for other metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adapters.protocol.reports import ReportJudge
from trainer.evaluate.compare import Comparison, OnStage
from trainer.evaluate.control_arms import ControlArm, constant_and_permuted, derangements
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.paired_difference import strongest
from trainer.evaluate.spec import EvaluationSpec, Judge, Preference

CONSTANT: Final = "one answer to everything"
PERMUTED: Final = "answers mixed up"
REASSIGNED: Final = "its own answers mixed up"


@dataclass(frozen=True, slots=True)
class PreferenceScores:
    """A comparison scored by a judge, its controls, and the judge's result against the strongest base."""

    comparison: Comparison
    form: tuple[ControlArm, ...]
    judged: ReportJudge


async def score_by_preference(
    comparison: Comparison, spec: EvaluationSpec, judge: Judge, on_stage: OnStage | None = None
) -> PreferenceScores:
    """Have a judge score a comparison.

    The constant control's answer is the authors' most typical or most frequent one. For the permuted control and for
    the candidate's own reassigned answers one derangement is used, since each costs two judge requests per example.

    Args:
        comparison: With all arms' answers.
        spec: With a candidate.
        judge: The judge.
        on_stage: Called with the progress; may raise to stop.
    """
    candidate = spec.candidate or ""
    candidate_answers, too_few = comparison.result(candidate).answers, False

    async def against(answers: Sequence[str], name: str) -> tuple[float, ...]:
        nonlocal too_few
        preference: Preference = await judge.prefer(comparison.questions, candidate_answers, answers, name, on_stage)
        too_few = too_few or not preference.enough
        return tuple(1 - score for score in preference.scores)

    results = []
    for result in comparison.results:
        label = result.arm.label
        scores = (0.5,) * len(candidate_answers) if label == candidate else await against(result.answers, label)
        results.append(result.model_copy(update={"runs": (scores,)}))  # repeated runs are not shown to the judge
    scored = comparison.model_copy(update={"results": tuple(results)})
    references = [question.reference for question in comparison.questions]
    constant_answer = (
        constant_and_permuted(references, RougeL(), trained_answers=spec.taught, seed=spec.rules.method.seed)[0].answer
        or ""
    )
    permutations = derangements(len(references), 1, spec.rules.method.seed, comparison.units)
    sources = permutations[0].tolist() if permutations else [0]
    form = (
        ControlArm(
            kind="constant", scores=await against([constant_answer] * len(references), CONSTANT), answer=constant_answer
        ),
        ControlArm(kind="permuted", scores=await against([references[index] for index in sources], PERMUTED)),
        ControlArm(
            kind="reassigned", scores=await against([candidate_answers[index] for index in sources], REASSIGNED)
        ),
    )
    judged = await judge.judge(comparison, candidate, strongest(scored, spec.bases), on_stage)
    if judged.counted and too_few:
        reason = f"The judge {judge.name} is not counted: for one arm too many votes are missing or unreadable."
        judged = judged.model_copy(
            update={"counted": False, "missed": True, "sentence": f"{reason} Against the base: {judged.sentence}"}
        )
    return PreferenceScores(scored, form, judged)
