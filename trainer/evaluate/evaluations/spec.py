"""The worker's view of an evaluation, and the files in its run directory besides those of `trainer.runs.protocol`.

    EVALUATIONS/ID/spec.json      EvaluationJob
    EVALUATIONS/ID/held_out.jsonl, training.jsonl   the data, fetched from the gateway
    EVALUATIONS/ID/plan.json      planning.EvaluationPlan: what is compared with what, fixed before anything is asked
    EVALUATIONS/ID/progress.json  EvaluationProgress
    EVALUATIONS/ID/held_out_questions.jsonl, answers.jsonl, scores.jsonl   the questions, answers and log-probabilities
    EVALUATIONS/ID/suite_answers.jsonl, judgements.jsonl   the answers to suites, and a judge's replies
    EVALUATIONS/ID/earlier_scores.json   of a revalidation: the scores of the verdict that it is compared with
    EVALUATIONS/ID/evaluation.json, evaluation.html   the report
    EVALUATIONS/ID/evaluation_scores.json   the scores question by question, for later revalidations
    EVALUATIONS/ID/arm_scores.json  ArmScores: every arm's, for a ladder
    EVALUATIONS/ID/provisional.json Provisional: while a comparison without a verdict is asked
    EVALUATIONS/ID/kept.json      UploadedFiles: ids of the report's files at the gateway
    EVALUATIONS/ID/result.json    EvaluationResult

Modules that load statistics define some of these names again; a test keeps them equal.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from adapters.protocol.reports import ArmMean
from adapters.protocol.runs import EvaluationContext
from trainer.base_model import chat_template
from trainer.config import Settings
from trainer.evaluate.arms import template_switches, thinks
from trainer.evaluate.evaluations.schemas import EvaluationBody
from trainer.installation import Installation
from trainer.runs.protocol import Frozen, RunResult
from trainer.runs.spec import RunSpec

WORKER: Final = "trainer.evaluate.evaluations.worker"
"""The module that starts a worker."""
EVALUATE: Final = "evaluate"
"""The one stage."""
REVALIDATION: Final = "revalidation"
"""The `kind` of an evaluation that repeats an earlier one."""
HELD_OUT: Final = "held_out.jsonl"
TRAINING: Final = "training.jsonl"
PLAN: Final = "plan.json"
ANSWERS: Final = "answers.jsonl"
SCORES: Final = "scores.jsonl"
UPLOADED_FILES: Final = "kept.json"
PROGRESS: Final = "progress.json"
QUESTIONS: Final = "held_out_questions.jsonl"
REPORT: Final = "evaluation.json"
PAGE: Final = "evaluation.html"
EXAMPLE_SCORES: Final = "evaluation_scores.json"
ARM_SCORES: Final = "arm_scores.json"
PROVISIONAL: Final = "provisional.json"
EARLIER_SCORES: Final = "earlier_scores.json"
SUITE_ANSWERS: Final = "suite_answers.jsonl"
JUDGEMENTS: Final = "judgements.jsonl"
ANSWER_FILES: Final = (ANSWERS, SCORES, SUITE_ANSWERS, JUDGEMENTS)
"""Append-only files of answers."""


class OperatorRules(Frozen):
    """The operator's settings for judging, as they were when the run was created."""

    min_examples: int = 30
    smallest_difference: float = 0.02
    live_margin: float | None = None
    forget_accuracy: float = 0.05
    forget_chat: float = 0.10
    forget_perplexity: float | None = None
    forget_items: int | None = None
    most_examples: int = 300
    concurrency: int = 8
    repeats: int = 2


def operator_rules(settings: Settings) -> OperatorRules:
    """The rules from the current settings."""
    return OperatorRules(
        min_examples=settings.min_examples,
        smallest_difference=settings.smallest_difference,
        live_margin=settings.live_margin,
        forget_accuracy=settings.forget_accuracy,
        forget_chat=settings.forget_chat,
        forget_perplexity=settings.forget_perplexity,
        forget_items=settings.forget_items,
        most_examples=settings.evaluate_max,
        concurrency=settings.evaluate_concurrency,
        repeats=settings.evaluate_repeats,
    )


class ServedModel(Frozen):
    """What an evaluation must know of the model that the engine serves."""

    context_tokens: int
    """The engine's context, in tokens."""
    template_switches: dict[str, bool] = Field(default_factory=dict)
    """See `arms.template_switches`."""
    thinks: bool = False
    """See `arms.thinks`."""


def served_model(installation: Installation, positions: int) -> ServedModel:
    """The model that the engine serves now. Reads its chat template.

    Args:
        positions: The base's maximum context length, in tokens.
    """
    template = chat_template(installation.base)
    return ServedModel(
        context_tokens=installation.context or positions,
        template_switches=template_switches(template),
        thinks=thinks(template),
    )


class EvaluationJob(RunSpec, ServedModel, OperatorRules):
    """One evaluation."""

    body: EvaluationBody
    context: EvaluationContext


class UploadedFiles(Frozen):
    """Ids of files at the gateway; ``held_out``: the questions that a job held out, if it uploaded them; ``scores``:
    the scores question by question, which only a verdict names."""

    held_out: str | None = None
    report: str | None = None
    page: str | None = None
    scores: str | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the result's files that are set, the report first."""
        return tuple(file_id for file_id in (self.report, self.page, self.held_out) if file_id is not None)


class Provisional(Frozen):
    """Mean scores of a comparison's arms over the questions that all of them have answered: ``questions`` of ``of``."""

    questions: int
    of: int
    means: tuple[ArmMean, ...]


class VerdictRecord(Frozen):
    """The verdict recorded on a version. ``live``: whether it was promoted. ``rule``: see `Verdict.rule`."""

    verdict: Literal["pass", "fail", "not_enough_evidence"]
    sentence: str
    metric: str
    examples: int
    live: bool = False
    rule: int = 1


class EvaluationDetails(Frozen):
    """What an evaluation adds to the record of a run. ``arms``: each arm's label, model and role."""

    arms: tuple[dict[str, Any], ...]


class EvaluationResult(RunResult):
    """How an evaluation ended. ``verdict``: None for a comparison without a candidate, or if none was reached.

    ``live``: whether the candidate is live now. ``holds``: of a revalidation, whether the earlier verdict holds; None
    if that is not shown. ``note``: about promotion and the comparison, in sentences.
    """

    verdict: Literal["pass", "fail", "not_enough_evidence"] | None = None
    sentence: str | None = None
    metric: str | None = None
    examples: int | None = None
    files: tuple[str, ...] = ()
    live: bool | None = None
    holds: bool | None = None
    note: str | None = None
    seconds: float = 0.0
