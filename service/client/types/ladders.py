"""Ladders and their reports."""

from typing import Any, Literal, NotRequired, TypedDict

from service.client.types.evaluations import ArmDifference, ArmMean
from service.client.types.training import JobError, Waiting

RungKey = Literal[
    "base",
    "instructions",
    "examples",
    "retrieved_examples",
    "documents",
    "lora",
    "lora_examples",
    "lora_documents",
    "distilled",
]
AdviceWord = Literal["do_not_fine_tune", "prompt", "examples", "retrieval", "fine_tune", "cannot_tell"]


class LadderChild(TypedDict):
    """A job or an evaluation of the ladder."""

    id: str
    purpose: Literal[
        "choose",
        "prompts",
        "job",
        "lora",
        "job:lora_examples",
        "lora_examples",
        "job:lora_documents",
        "lora_documents",
        "job:distilled",
        "distilled",
        "job:half",
        "half",
        "job:quarter",
        "quarter",
        "job:cleanest_half",
        "cleanest_half",
    ]


class ProvisionalScore(TypedDict):
    """What a rung scores so far, over ``questions`` of ``of``, with its 95% interval."""

    mean: float
    low: float
    high: float
    questions: int
    of: int


class LadderRung(TypedDict):
    """A rung that is there by now."""

    key: RungKey
    title: str
    model: str
    """The base, or a version."""
    mean: float | None
    """None until it is measured."""
    provisional: NotRequired[ProvisionalScore | None]
    """While it is measured; it decides nothing. Missing if an older gateway answers."""
    vector_store_id: str | None
    """The ladder's store, if the rung retrieves from it; missing if an older gateway answers."""


class LadderLabels(TypedDict):
    """What the teacher has made of the prompts, so far or in the end."""

    teacher: str
    outside: bool
    prompts: int
    answered: int
    refused: int
    truncated: int
    file: str | None
    """The training file of its answers, once every prompt has a reply."""
    error: str | None


class Ladder(TypedDict):
    """A ladder."""

    object: Literal["ladder"]
    id: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    created_at: int
    finished_at: int | None
    adapter: str
    training_file: str
    quick: bool
    target: float | None
    teacher: str | None
    unlabelled_file: str | None
    labels: LadderLabels | None
    """None until the teacher is asked."""
    children: list[LadderChild]
    waiting: Waiting | None
    rungs: list[LadderRung]
    """The cheapest first."""
    vector_store_id: str | None
    """The store of examples that the ladder made; missing if an older gateway answers."""
    advice: AdviceWord | None
    rung: RungKey | None
    """The rung to ship."""
    model: str | None
    """What to promote."""
    sentence: str | None
    result_files: list[str]
    seconds: float | None
    error: JobError | None
    metadata: dict[str, str] | None


class LadderEvent(TypedDict):
    """An event of a ladder."""

    object: Literal["ladder.event"]
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str


class LadderAdvice(TypedDict):
    """What to do, and why."""

    word: AdviceWord
    rung: RungKey | None
    sentence: str
    reasons: list[str]
    would_change: list[str]


class FirstToken(TypedDict):
    """A rung's time to the first token, of streamed requests, one at a time."""

    median_seconds: float
    slowest_seconds: float
    requests: int


class ReportedRung(TypedDict):
    """Everything about one rung."""

    key: RungKey
    title: str
    model: str
    mean: ArmMean
    control: float
    against_below: ArmDifference | None
    request: dict[str, Any]
    seconds: float
    first_token: NotRequired[FirstToken | None]
    once: dict[str, Any]
    year: dict[str, Any]
    update: str
    shown: list[dict[str, Any]]
    system_prompt: NotRequired[str | None]
    held_back: NotRequired[str | None]


class CurvePoint(TypedDict):
    """A LoRA on a part of the examples."""

    part: str
    """In words: a quarter, a half, all."""
    model: str
    examples: int
    mean: ArmMean


class LearningCurve(TypedDict):
    """Would more examples help, or cleaner ones?"""

    points: list[CurvePoint]
    """Random parts, the fewest examples first."""
    more: NotRequired[Literal["help", "no", "open"] | None]
    """Whether more examples would help."""
    cleanest: NotRequired[CurvePoint | None]
    """The half with the fewest findings of the data report."""
    cleaner: NotRequired[ArmDifference | None]
    """The cleanest half against the random half."""
    against_all: NotRequired[ArmDifference | None]
    """The cleanest half against all examples."""
    sentence: str


class LadderReport(TypedDict):
    """The whole ladder, the cheapest rung first."""

    format: NotRequired[int]
    id: str
    adapter: str
    base: str
    file: str
    created_at: str
    seconds: float
    advice: LadderAdvice
    rungs: list[ReportedRung]
    skipped: list[dict[str, str]]
    prompts_seconds: NotRequired[float | None]
    curve: NotRequired[LearningCurve | None]
    """None if no LoRA was trained on a part of the examples."""
    metric: str
    why_metric: str
    counts: dict[str, int]
    facts: dict[str, Any]
    common_answer: float
    target: float | None
    quick: bool
    prices: dict[str, Any]
    requests_per_month: int
    labels: NotRequired[dict[str, Any] | None]
    subsets_kept_days: NotRequired[float | None]
    notes: list[str]
