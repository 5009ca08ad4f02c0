"""Evaluations, their reports and revalidations."""

from typing import Any, Literal, NotRequired, TypedDict

from service.client.types.adapters import VerdictWord
from service.client.types.data import QualityReport
from service.client.types.gateway import Error
from service.client.types.reviews import HumanPreference
from service.client.types.training import JobError, Waiting


class EvaluationArm(TypedDict):
    """One side of a comparison."""

    label: str
    model: str
    role: Literal["candidate", "base", "live"] | None
    endpoint: NotRequired[str | None]


class EvaluationProgress(TypedDict):
    """Progress of an evaluation."""

    stage: str
    done: int
    total: int


class Evaluation(TypedDict):
    """An evaluation: a version against the base, or several arms against each other."""

    object: Literal["evaluation"]
    id: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: int
    finished_at: int | None
    kind: Literal["evaluation", "revalidation"]
    model: str | None
    arms: list[EvaluationArm]
    candidate: str | None
    """Model of the arm that is judged."""
    held_out: str
    metric: str | dict[str, Any]
    """As requested; its name once resolved."""
    promote: Literal["auto", "never"]
    verdict: VerdictWord | None
    sentence: str | None
    examples: int | None
    live: bool | None
    """Whether the candidate went live."""
    note: str | None
    """Outcome of the promotion, as a sentence."""
    progress: EvaluationProgress | None
    """None once it has ended."""
    waiting: Waiting | None
    """None if it waits for nothing."""
    result_files: list[str]
    seconds: float | None
    error: JobError | None
    metadata: dict[str, str] | None


class ArmMean(TypedDict):
    """Mean score of an arm, with its confidence interval."""

    label: str
    mean: float
    low: float
    high: float
    examples: int


class ArmDifference(TypedDict):
    """How much higher one arm scores than another, with its confidence interval."""

    of: str
    against: str
    estimate: float
    low: float
    high: float
    confidence: float
    method: str
    examples: int
    wins: int
    losses: int
    p_value: NotRequired[float | None]
    """McNemar's exact test, for right-or-wrong scores."""
    noise: NotRequired[float | None]
    """Standard deviation between repeats, if questions were repeated."""
    bound: NotRequired[float]
    """What the lower end must exceed."""
    detectable: NotRequired[float | None]
    """Smallest true difference that this many examples can detect."""
    needed: NotRequired[int | None]
    """Number of examples needed to detect it."""
    needed_if_higher: NotRequired[int | None]
    """The same if the true difference is one standard error further from the bound."""
    needed_if_lower: NotRequired[int | None]
    """The same if it is one standard error closer; None: no practical number would do."""


class VerdictCheck(TypedDict):
    """A condition of a pass. `broken`: shown to be violated; `open`: undecided."""

    name: Literal["examples", "base", "live", "form", "length", "second_measure", "forgetting", "suites", "judge"]
    state: Literal["kept", "broken", "open"]
    sentence: str


class ReportVerdict(TypedDict):
    """A verdict with the numbers behind it."""

    rule: int
    """Version of the decision rule; later ones are stricter."""
    look: NotRequired[int]
    """Number of this version among those judged on the same examples."""
    word: VerdictWord
    sentence: str
    checks: list[VerdictCheck]
    metric: str
    candidate: str
    base: str
    """The strongest arm of the base model."""
    live: str | None
    examples: int
    means: list[ArmMean]
    against_base: ArmDifference
    against_live: ArmDifference | None
    against_form: list[ArmDifference]
    form: list[dict[str, Any]]
    """Controls: what the form of an answer alone would score."""
    likelihood: NotRequired[dict[str, Any] | None]
    """The second measure for free text."""
    forgetting: dict[str, Any] | None
    detectable: float | None
    more: int | None
    """Additional examples that would settle what is open; None: no number would."""
    rules: dict[str, Any]


class RevalidationCheck(TypedDict):
    """One condition under which an earlier verdict holds."""

    name: Literal["score", "advantage", "forgetting"]
    state: Literal["kept", "broken", "open"]
    sentence: str


class ReportRevalidation(TypedDict):
    """Of a revalidation that was compared with an earlier verdict: whether that one holds. It decides."""

    word: VerdictWord
    """The earlier verdict's word if it holds; `fail` if it does not."""
    sentence: str
    holds: bool | None
    """None: neither is shown; the version stays as it was."""
    compared_with: str
    """Id of the earlier verdict."""
    rule: int
    """Version of the decision rule of the verdict that stands."""
    checks: list[RevalidationCheck]
    examples: int
    """Questions that both evaluations asked."""
    changed: int
    """Questions on which the version's answer has changed."""
    then_now: ArmDifference
    """Scores now minus scores then, paired by question."""
    strict: ArmDifference
    """The same with the confidence that a failure needs."""
    advantage: ArmDifference
    """The lead over the strongest base, now minus then."""


class ReportSuite(TypedDict):
    """Result of a suite."""

    name: str
    kind: Literal["budget", "report"]
    """`budget` counts in the verdict; `report` is only shown."""
    state: NotRequired[Literal["kept", "broken", "open"]]
    silent: NotRequired[bool]
    """The base model scores at chance, so a loss cannot show."""
    sentence: str
    numbers: NotRequired[dict[str, Any]]
    forgetting: NotRequired[dict[str, Any] | None]


class ReportJudge(TypedDict):
    """Result of a judge. A score is 1 where it prefers the candidate, 0 where it prefers the base model."""

    judge: str
    scores: list[float]
    refused: NotRequired[list[int]]
    """Positions, from 0, of the examples that `scores` leaves out: its endpoint refused the pair."""
    counted: bool
    """Whether the judge agrees with people well enough to count."""
    missed: NotRequired[bool]
    lean_low: NotRequired[float | None]
    """Interval of how much more it favours the candidate than people do."""
    lean_high: NotRequired[float | None]
    sentence: str
    numbers: NotRequired[dict[str, Any]]


class ReportMeasure(TypedDict):
    """A secondary metric: mean by arm label."""

    name: str
    means: dict[str, float | None]


class ReportSample(TypedDict):
    """An example with the answers of candidate and base model."""

    kind: Literal["best", "worst", "random"]
    id: str
    asked: str
    reference: str
    base: str
    candidate: str
    base_score: float
    candidate_score: float


class LossPoint(TypedDict):
    """Losses after a step, in nats per trained token."""

    step: int
    training: NotRequired[float | None]
    held_out: NotRequired[float | None]


class ReportCost(TypedDict):
    """Cost of training and evaluation: seconds, and a price in the operator's currency."""

    training_s: NotRequired[float]
    trained_tokens: NotRequired[int]
    device: NotRequired[str]
    price: NotRequired[float]
    evaluation_s: NotRequired[float]


class ReportVoice(TypedDict):
    """What the measure `voice` gives to answers of which it is known how much they are the author's, 0 to 1."""

    author: float
    """The author's own answers."""
    base: float
    phrases: float
    """The base's answers behind sentences of the author's."""
    shuffled: float
    """The author's words in random order."""
    told_apart: float
    """The least share of questions on which the author's answer scores highest."""
    examples: int


class EvaluationReport(TypedDict):
    """Report of an evaluation."""

    format: NotRequired[int]
    adapter: str
    created_at: str
    """ISO 8601."""
    verdict: ReportVerdict | None
    metric: str
    why: NotRequired[str]
    """Why this metric was chosen."""
    notes: NotRequired[list[str]]
    means: list[ArmMean]
    differences: NotRequired[list[ArmDifference]]
    held_out: int
    suites: NotRequired[list[ReportSuite]]
    judged: NotRequired[ReportJudge | None]
    voice: NotRequired[ReportVoice | None]
    revalidation: NotRequired[ReportRevalidation | None]
    people: NotRequired[HumanPreference | None]
    """What people preferred, blind, once they have reviewed all pairs; it decides nothing."""
    labels: list[str]
    """Arms in display order."""
    served: dict[str, str]
    """What served each arm."""
    measures: list[ReportMeasure]
    samples: list[ReportSample]
    loss_curve: NotRequired[list[LossPoint]]
    data: NotRequired[QualityReport | None]
    lineage: NotRequired[dict[str, Any] | None]
    """Where the adapter comes from."""
    cost: NotRequired[ReportCost | None]
    asked_tokens: NotRequired[int]
    cut: dict[str, int]
    """Number of answers cut at the longest length, by arm."""


class StartedRevalidation(TypedDict):
    """A due version with its new evaluation, or the error that prevented it."""

    object: Literal["revalidation"]
    version: str
    reasons: list[str]
    """What has changed since its last verdict."""
    evaluation: Evaluation | None
    error: Error | None


class StartedRevalidations(TypedDict):
    """Evaluations that a revalidation has started."""

    object: Literal["list"]
    data: list[StartedRevalidation]
    left: int
    """Number of due versions left for the next call."""
