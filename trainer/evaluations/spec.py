"""What the trainer and an evaluation's worker say to each other, in files of the evaluation's folder.

    EVALUATIONS/ID/spec.json      EvaluationJob: what is to be done; written once, by the trainer
    EVALUATIONS/ID/key            the key that the worker shows the gateway (mode 0600)
    EVALUATIONS/ID/control        one word, by the trainer: run or cancel
    EVALUATIONS/ID/worker.lock    held (flock) by the worker as long as it lives, its process id inside
    EVALUATIONS/ID/events.jsonl   what the worker says
    EVALUATIONS/ID/held_out.jsonl, training.jsonl   the data, fetched from the gateway
    EVALUATIONS/ID/plan.json      planning.Plan: what is compared with what, fixed before anything is asked
    EVALUATIONS/ID/progress.json  Progress
    EVALUATIONS/ID/held_out_questions.jsonl, answers.jsonl, scores.jsonl   what was asked, and what came of it
    EVALUATIONS/ID/suite_answers.jsonl, judgements.jsonl   the same of suites and of a judge
    EVALUATIONS/ID/evaluation.json, evaluation.html   the report
    EVALUATIONS/ID/kept.json      Kept: ids of the report's files at the gateway
    EVALUATIONS/ID/result.json    EvaluationResult: written once, at the end

What stands there is not done again: that is how an evaluation goes on after a crash.
"""

from __future__ import annotations

from typing import Final, Literal

from trainer.evaluate.arms import Frozen
from trainer.evaluations.asked import Context, EvaluationBody
from trainer.jobs.spec import Failure

PROGRESS: Final = "progress.json"
QUESTIONS: Final = "held_out_questions.jsonl"
REPORT: Final = "evaluation.json"
PAGE: Final = "evaluation.html"
SUITE_ANSWERS: Final = "suite_answers.jsonl"
JUDGEMENTS: Final = "judgements.jsonl"


class EvaluationJob(Frozen):
    """One evaluation. Everything that its creator was allowed to name has been checked by the gateway."""

    id: str
    project: str
    created_at: int
    gateway: str
    """The gateway's URL."""
    base_name: str
    context_tokens: int
    """The engine's context, in tokens."""
    body: EvaluationBody
    context: Context
    min_examples: int
    smallest_difference: float
    forget_accuracy: float
    forget_perplexity: float
    most_examples: int
    concurrency: int
    repeats: int


class Progress(Frozen):
    """How far a worker is."""

    stage: str
    done: int
    total: int


class Kept(Frozen):
    """Ids of the report's files at the gateway."""

    report: str | None = None
    page: str | None = None


class EvaluationResult(Frozen):
    """How an evaluation ended. ``verdict`` is None for a comparison without a candidate, and where none was reached.

    ``live``: whether the candidate serves under its name now. ``note``: what became of that, in words.
    """

    status: Literal["succeeded", "failed", "cancelled"]
    error: Failure | None = None
    verdict: Literal["pass", "fail", "not_enough_evidence"] | None = None
    sentence: str | None = None
    metric: str | None = None
    examples: int | None = None
    files: tuple[str, ...] = ()
    live: bool | None = None
    note: str | None = None
    seconds: float = 0.0
