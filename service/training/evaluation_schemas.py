"""Response schemas of evaluations and reviews, for the OpenAPI document; the trainer builds the objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from adapters.protocol.reports import (
    ArmDifference,
    ArmMean,
    EvaluationProgress,
    HumanPreference,
    LossPoint,
    QualityReport,
    ReportCost,
    ReportJudge,
    ReportMeasure,
    ReportSample,
    Waiting,
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
    candidate: str | None = Field(description="Model of the arm that is judged.")
    held_out: str
    metric: str | dict[str, Any] = Field(description="As requested; once resolved, the metric's name.")
    promote: Literal["auto", "never"]
    verdict: VerdictWord | None
    sentence: str | None
    examples: int | None
    live: bool | None = Field(description="Whether the candidate was promoted to live.")
    note: str | None = Field(description="Outcome of the promotion.")
    progress: EvaluationProgress | None = Field(description="Null once the evaluation has ended.")
    waiting: Waiting | None = Field(description="What an unfinished evaluation waits for; null if for nothing.")
    result_files: list[str]
    seconds: float | None
    error: JobError | None
    metadata: dict[str, str] | None


class VerdictCheck(ApiModel):
    """One condition of a pass: `kept` (shown to hold), `broken` (shown not to hold) or `open` (neither is shown)."""

    name: Literal["examples", "base", "live", "form", "length", "second_measure", "forgetting", "suites", "judge"]
    state: Literal["kept", "broken", "open"]
    sentence: str


class ReportVerdict(ApiModel):
    """The verdict and the numbers behind it."""

    rule: int = Field(description="Version of the verdict rule; later versions are stricter.")
    look: int = Field(1, description="Number of this version among those judged on the same examples.")
    word: VerdictWord
    sentence: str
    checks: list[VerdictCheck]
    metric: str
    candidate: str
    base: str = Field(description="Label of the strongest base arm.")
    live: str | None
    examples: int
    means: list[ArmMean]
    against_base: ArmDifference
    against_live: ArmDifference | None
    against_form: list[ArmDifference]
    form: list[dict[str, Any]] = Field(description="Control arms: scores of answers that ignore the question.")
    likelihood: dict[str, Any] | None = Field(None, description="The second measure for free text.")
    forgetting: dict[str, Any] | None
    detectable: float | None
    more: int | None = Field(
        description="Additional examples that would settle the open checks; null if no number would."
    )
    rules: dict[str, Any]


class RevalidationCheck(ApiModel):
    """One condition under which an earlier verdict holds; its state as in `VerdictCheck`."""

    name: Literal["score", "advantage", "forgetting"]
    state: Literal["kept", "broken", "open"]
    sentence: str


class ReportRevalidation(ApiModel):
    """Of a revalidation that was compared with an earlier verdict: whether that one holds. It decides."""

    word: VerdictWord = Field(description="The earlier verdict's word if it holds; `fail` if it does not.")
    sentence: str
    holds: bool | None = Field(description="Null: neither is shown; the version stays as it was.")
    compared_with: str = Field(description="The earlier verdict's id.")
    rule: int = Field(description="Version of the rule of the verdict that stands.")
    checks: list[RevalidationCheck]
    examples: int = Field(description="Questions that both evaluations asked.")
    changed: int = Field(description="Questions on which the version's answer has changed.")
    then_now: ArmDifference = Field(description="Scores now minus scores then, paired by question.")
    strict: ArmDifference = Field(description="The same with the confidence that a failure needs.")
    advantage: ArmDifference = Field(description="The lead over the strongest base, now minus then.")


class ReportSuite(ApiModel):
    """The result of a suite."""

    name: str
    kind: Literal["budget", "report"] = Field(
        description="`budget` counts towards the verdict; `report` is only shown."
    )
    state: Literal["kept", "broken", "open"] = "kept"
    silent: bool = Field(False, description="The base scores at chance, so no loss can be measured.")
    sentence: str
    numbers: dict[str, Any] = Field(default_factory=dict)
    forgetting: dict[str, Any] | None = None


class ReportVoice(ApiModel):
    """What the measure `voice` gives to answers of which it is known how much they are the author's, 0 to 1."""

    author: float = Field(description="The author's own answers.")
    base: float
    phrases: float = Field(description="The base's answers behind sentences of the author's.")
    shuffled: float = Field(description="The author's words in random order.")
    told_apart: float = Field(description="The least share of questions on which the author's answer scores highest.")
    examples: int


class EvaluationReport(ApiModel):
    """The full report of an evaluation."""

    format: int = 1
    adapter: str
    created_at: str = Field(description="ISO 8601.")
    verdict: ReportVerdict | None
    metric: str
    why: str = Field("", description="Why this metric was chosen.")
    notes: list[str] = Field(default_factory=list)
    means: list[ArmMean]
    differences: list[ArmDifference] = Field(default_factory=list)
    held_out: int
    suites: list[ReportSuite] = Field(default_factory=list)
    judged: ReportJudge | None = None
    voice: ReportVoice | None = None
    revalidation: ReportRevalidation | None = None
    people: HumanPreference | None = Field(
        None, description="What people preferred, blind, once they have reviewed all pairs; it decides nothing."
    )
    labels: list[str] = Field(description="The arms' labels in display order.")
    served: dict[str, str] = Field(description="The model that answered for each arm.")
    measures: list[ReportMeasure]
    samples: list[ReportSample]
    loss_curve: list[LossPoint] = Field(default_factory=list)
    data: QualityReport | None = None
    lineage: dict[str, Any] | None = Field(None, description="How the adapter was trained.")
    cost: ReportCost | None = None
    asked_tokens: int = 0
    cut: dict[str, int] = Field(description="Answers per arm that were cut at the maximum length.")


class StartedRevalidation(ApiModel):
    """A version that is due for revalidation, with its evaluation or the error that prevents it."""

    object: Literal["revalidation"]
    version: str
    reasons: list[str] = Field(description="Why it is due: what changed since its last verdict.")
    evaluation: Evaluation | None
    error: Error | None


class StartedRevalidations(ApiModel):
    """The versions that are being revalidated."""

    object: Literal["list"]
    data: list[StartedRevalidation]
    left: int = Field(description="Versions left for the next call.")


class Agreement(ApiModel):
    """Agreement between a judge and human reviewers."""

    pairs: int
    kappa: float | None = Field(description="Cohen's kappa.")
    low: float | None
    high: float | None
    observed: float | None = Field(description="Fraction of pairs on which they agree.")
    lean: float | None = Field(
        None,
        description="How much more the judge favours the candidate than people do, from -1 to 1; 0.1: 10 of 100. Null, "
        "with its interval, until the queue is final.",
    )
    lean_low: float | None = None
    lean_high: float | None = None
    confidence: float = Field(0.95, description="Of both intervals, two-sided.")


class ReviewQueue(ApiModel):
    """An evaluation's pairs for human review."""

    object: Literal["review.queue"]
    id: str = Field(description="Id of the evaluation or the job.")
    judge: str | None = Field(description="The judge that people's choices validate; null if there is none.")
    created_at: int
    pairs: int
    reviewed: int = Field(description="Pairs that have all their choices.")
    reviewers: int = Field(1, description="Choices on each pair, each by another key.")
    final: bool = Field(
        description="Every pair has been reviewed, or the review was ended; choices can no longer change."
    )
    ended_at: int | None = Field(None, description="When it was ended before all were reviewed; null: it was not.")
    agreement: Agreement | None = Field(description="Of the judge with people; null without a judge.")
    standing: Agreement | None = Field(
        description="Agreement over this evaluation and all others of the project whose reviews are final."
    )
    counted: bool = Field(description="Whether the judge counts; false without a judge.")
    people: HumanPreference | None = Field(None, description="What people preferred; null until it is final.")
    more_reviews: int | None = Field(
        None, description="Further reviews that would make the judge count if the estimates are true; null if unknown."
    )
    sentence: str


class ReviewTurn(ApiModel):
    """A message of a conversation."""

    role: str
    content: str


class Review(ApiModel):
    """Two answers to compare. Which arm each is from is shown once all pairs have been reviewed."""

    object: Literal["review"]
    id: str
    evaluation: str
    asked: list[ReviewTurn]
    reference: str | None
    first: str
    second: str
    choice: Literal["first", "second", "tie"] | None = Field(
        description="With several reviewers, the choice of this key."
    )
    chosen_at: int | None
    first_is: Literal["candidate", "base"] | None = None
    judge_vote: Literal["candidate", "base", "tie"] | None = None
    vote: Literal["candidate", "base", "tie"] | None = Field(None, description="The reviewer's vote.")


class NextReview(ApiModel):
    """The next pair to review."""

    object: Literal["review.next"]
    review: Review | None = Field(description="Null if none is left.")
    evaluation: str | None
    reviewed: int = Field(description="Pairs that need no choice of this key any more.")
    total: int


class Teacher(ApiModel):
    """An outside endpoint that answers prompts to train on."""

    object: Literal["teacher"]
    id: str = Field(description="Its name in the operator's settings.")
    model: str
    price_input: float | None = Field(description="Of a million prompt tokens, in the operator's currency.")
    price_output: float | None


class TeacherMessage(ApiModel):
    """A teacher's answer, or why there is none."""

    role: Literal["assistant"]
    content: str
    refusal: str | None


class TeacherChoice(ApiModel):
    """The one answer."""

    index: Literal[0]
    message: TeacherMessage
    finish_reason: str | None


class TeacherUsage(ApiModel):
    """Tokens as the endpoint counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TeacherAnswer(ApiModel):
    """A teacher's answer, as a chat completion."""

    object: Literal["chat.completion"]
    model: str
    choices: list[TeacherChoice]
    usage: TeacherUsage | None = Field(description="Null if the endpoint did not state it.")
