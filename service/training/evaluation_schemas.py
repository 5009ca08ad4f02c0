"""Evaluations and reviews as the API shows them. The trainer builds them; here they are described alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from adapters.protocol.reports import (
    ArmDifference,
    ArmMean,
    EvaluationProgress,
    LossPoint,
    QualityReport,
    ReportCost,
    ReportJudge,
    ReportMeasure,
    ReportSample,
)
from adapters.protocol.requests import VerdictWord
from service.http.schema import ApiModel, Error
from service.training.job_schemas import JobError


class EvaluationArm(ApiModel):
    """One side of a comparison."""

    label: str
    model: str
    role: Literal["candidate", "base", "live"] | None
    endpoint: str | None = None


class Evaluation(ApiModel):
    """An evaluation: a version against the base, or several arms against each other."""

    object: Literal["evaluation"]
    id: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: int
    finished_at: int | None
    kind: Literal["evaluation", "revalidation"]
    model: str | None
    arms: list[EvaluationArm]
    candidate: str | None = Field(description="The model of the arm that is judged.")
    held_out: str
    metric: str | dict[str, Any] = Field(description="As it was asked for; once known, the name of what it came to.")
    promote: Literal["auto", "never"]
    verdict: VerdictWord | None
    sentence: str | None
    examples: int | None
    live: bool | None = Field(description="Whether the candidate serves under its name since.")
    note: str | None = Field(description="What became of the promotion, in words.")
    progress: EvaluationProgress | None = Field(description="Null once it has ended.")
    result_files: list[str]
    seconds: float | None
    error: JobError | None
    metadata: dict[str, str] | None


class VerdictCheck(ApiModel):
    """One of the things that a pass needs; `broken`: shown not to be so, `open`: neither is shown."""

    name: Literal["examples", "base", "live", "form", "second_measure", "forgetting", "suites", "judge"]
    state: Literal["kept", "broken", "open"]
    sentence: str


class ReportVerdict(ApiModel):
    """The verdict, and every number behind it."""

    rule: int = Field(description="The rule that it was decided by; later ones are stricter.")
    word: VerdictWord
    sentence: str
    checks: list[VerdictCheck]
    metric: str
    candidate: str
    base: str = Field(description="The strongest of the base's arms.")
    live: str | None
    examples: int
    means: list[ArmMean]
    against_base: ArmDifference
    against_live: ArmDifference | None
    against_form: list[ArmDifference]
    form: list[dict[str, Any]] = Field(description="Controls: what an answer's form alone would score.")
    likelihood: dict[str, Any] | None = Field(None, description="The second measure of free text.")
    forgetting: dict[str, Any] | None
    detectable: float | None
    more: int | None = Field(description="Examples more that would settle what is open; null: no number would.")
    rules: dict[str, Any]


class ReportSuite(ApiModel):
    """What a suite found."""

    name: str
    kind: Literal["budget", "report"] = Field(description="`budget` counts in the verdict, `report` is shown.")
    state: Literal["kept", "broken", "open"] = "kept"
    silent: bool = Field(False, description="The base is at chance: no loss can show.")
    sentence: str
    numbers: dict[str, Any] = Field(default_factory=dict)
    forgetting: dict[str, Any] | None = None


class EvaluationReport(ApiModel):
    """Everything about one evaluation."""

    format: int = 1
    adapter: str
    created_at: str = Field(description="ISO 8601.")
    verdict: ReportVerdict | None
    metric: str
    why: str = Field("", description="Why that metric.")
    notes: list[str] = Field(default_factory=list)
    means: list[ArmMean]
    differences: list[ArmDifference] = Field(default_factory=list)
    held_out: int
    suites: list[ReportSuite] = Field(default_factory=list)
    judged: ReportJudge | None = None
    labels: list[str] = Field(description="The arms, in the order that they are shown in.")
    served: dict[str, str] = Field(description="What each arm was answered by.")
    measures: list[ReportMeasure]
    samples: list[ReportSample]
    loss_curve: list[LossPoint] = Field(default_factory=list)
    data: QualityReport | None = None
    lineage: dict[str, Any] | None = Field(None, description="Where the adapter comes from.")
    cost: ReportCost | None = None
    asked_tokens: int = 0
    cut: dict[str, int] = Field(description="Answers of each arm that reached the longest length.")


class StartedRevalidation(ApiModel):
    """A version that is due, and the evaluation that judges it again, or why there is none."""

    object: Literal["revalidation"]
    version: str
    reasons: list[str] = Field(description="What has changed since its last verdict.")
    evaluation: Evaluation | None
    error: Error | None


class StartedRevalidations(ApiModel):
    """The versions that are judged again now."""

    object: Literal["list"]
    data: list[StartedRevalidation]
    left: int = Field(description="How many the next call would begin with.")


class Agreement(ApiModel):
    """How far a judge and people agree."""

    pairs: int
    kappa: float | None = Field(description="Cohen's.")
    low: float | None
    high: float | None
    observed: float | None = Field(description="Share of pairs on which they do.")


class ReviewQueue(ApiModel):
    """An evaluation's pairs for people."""

    object: Literal["review.queue"]
    id: str = Field(description="The evaluation's, or the job's.")
    judge: str
    created_at: int
    pairs: int
    reviewed: int
    final: bool = Field(description="Every pair has its choice: none is changed any more.")
    agreement: Agreement
    standing: Agreement = Field(description="Over all evaluations of the project.")
    counted: bool
    sentence: str


class ReviewTurn(ApiModel):
    """A message of a conversation."""

    role: str
    content: str


class Review(ApiModel):
    """Two answers, of which a person says which is better. Whose they are is told once all pairs are looked at."""

    object: Literal["review"]
    id: str
    evaluation: str
    asked: list[ReviewTurn]
    reference: str | None
    first: str
    second: str
    choice: Literal["first", "second", "tie"] | None
    chosen_at: int | None
    first_is: Literal["candidate", "base"] | None = None
    judge_vote: Literal["candidate", "base", "tie"] | None = None
    vote: Literal["candidate", "base", "tie"] | None = Field(None, description="The person's.")


class NextReview(ApiModel):
    """The next pair to look at."""

    object: Literal["review.next"]
    review: Review | None = Field(description="Null: none is left.")
    evaluation: str | None
    reviewed: int
    total: int
