"""Response schemas of ladders, for the OpenAPI document; the trainer builds the objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from adapters.protocol.reports import ArmDifference, ArmMean, Waiting
from service.http.schema import ApiModel
from service.training.job_schemas import JobError

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


class LadderChild(ApiModel):
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


class ProvisionalScore(ApiModel):
    """What a rung scores so far, with its 95% interval."""

    mean: float
    low: float
    high: float
    questions: int = Field(description="That all rungs of its comparison have answered.")
    of: int


class LadderRung(ApiModel):
    """A rung that is there by now."""

    key: RungKey
    title: str
    model: str = Field(description="The base, or the version: it can be asked and promoted like any other.")
    mean: float | None = Field(description="Its score; null until it is measured.")
    provisional: ProvisionalScore | None = Field(
        None, description="While it is measured, after a minute and then every half: what decides nothing. Else null."
    )
    vector_store_id: str | None = Field(description="The ladder's store, if the rung retrieves from it.")


class LadderLabels(ApiModel):
    """What the teacher has made of the prompts, so far or in the end."""

    teacher: str
    outside: bool = Field(description="Whether it is an outside endpoint.")
    prompts: int = Field(description="Those that do not repeat held-out questions.")
    answered: int
    refused: int
    truncated: int = Field(description="Answers that were cut; they are set aside, as refusals are.")
    file: str | None = Field(description="The training file of its answers, once every prompt has a reply.")
    error: str | None = Field(description="Why there is none.")


class Ladder(ApiModel):
    """A ladder: the cheapest way to answer like the examples, measured rung by rung."""

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
    labels: LadderLabels | None = Field(description="Null until the teacher is asked.")
    children: list[LadderChild]
    waiting: Waiting | None = Field(description="What it waits for; null if it waits for nothing.")
    rungs: list[LadderRung] = Field(description="The cheapest first.")
    vector_store_id: str | None = Field(
        description="The store of examples that the ladder made, and does not delete by itself; null if there is none."
    )
    advice: AdviceWord | None
    rung: RungKey | None = Field(description="The rung to ship.")
    model: str | None = Field(description="What to promote.")
    sentence: str | None
    result_files: list[str]
    seconds: float | None
    error: JobError | None
    metadata: dict[str, str] | None


class LadderEvent(ApiModel):
    """An event of a ladder."""

    object: Literal["ladder.event"]
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str


class LadderAdvice(ApiModel):
    """What to do, and why."""

    word: AdviceWord
    rung: RungKey | None
    sentence: str
    reasons: list[str]
    would_change: list[str]


class FirstToken(ApiModel):
    """A rung's time to the first token, of streamed requests, one at a time."""

    median_seconds: float
    slowest_seconds: float
    requests: int = Field(description="How many were timed.")


class ReportedRung(ApiModel):
    """Everything about one rung."""

    key: RungKey
    title: str
    model: str
    mean: ArmMean
    control: float = Field(description="The score of its own answers at other questions: what the form alone earns.")
    against_below: ArmDifference | None = Field(description="What it gained on the rung below, paired by question.")
    request: dict[str, Any] = Field(description="Tokens, engine seconds and cost of one request.")
    seconds: float = Field(description="Mean time from a request to its complete answer, in the evaluation's load.")
    first_token: FirstToken | None = Field(None, description="Null if it could not be measured.")
    once: dict[str, Any] = Field(description="What making it took.")
    year: dict[str, Any] = Field(description="The cost of a year, by what it is for.")
    update: str = Field(description="How fast it can be changed.")
    shown: list[dict[str, Any]]
    system_prompt: str | None = None
    held_back: str | None = Field(
        None, description="Why `live` does not move to the version unless it is forced; null: it may."
    )


class CurvePoint(ApiModel):
    """A LoRA on a part of the examples."""

    part: str = Field(description="In words: a quarter, a half, all.")
    model: str
    examples: int
    mean: ArmMean


class LearningCurve(ApiModel):
    """Would more examples help, or cleaner ones?"""

    points: list[CurvePoint] = Field(description="Random parts, the fewest examples first.")
    cleanest: CurvePoint | None = Field(
        None, description="The half with the fewest findings of the data report; null if it was not measured."
    )
    more: Literal["help", "no", "open"] | None = Field(None, description="Whether more examples would help.")
    cleaner: ArmDifference | None = Field(None, description="The cleanest half against the random half.")
    against_all: ArmDifference | None = Field(None, description="The cleanest half against all examples.")
    sentence: str


class LadderReport(ApiModel):
    """The whole ladder, the cheapest rung first."""

    format: int = 1
    id: str
    adapter: str
    base: str
    file: str
    created_at: str = Field(description="ISO 8601.")
    seconds: float
    advice: LadderAdvice
    rungs: list[ReportedRung]
    skipped: list[dict[str, str]]
    prompts_seconds: float | None = Field(
        None, description="After how long the rungs without weights were measured; null in older reports."
    )
    curve: LearningCurve | None = Field(None, description="Null if no LoRA was trained on a part of the examples.")
    metric: str
    why_metric: str
    counts: dict[str, int]
    facts: dict[str, Any] = Field(description="What the data report says that decides the advice.")
    common_answer: float
    target: float | None
    quick: bool
    prices: dict[str, Any]
    requests_per_month: int
    labels: dict[str, Any] | None = Field(
        None, description="What the teacher made of the prompts, with its tokens, engine time and money."
    )
    subsets_kept_days: float | None = Field(
        None, description="After how many days the versions of `curve` that are no rungs are deleted; null: never."
    )
    notes: list[str]
