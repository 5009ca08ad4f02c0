"""The spec, plan and result of a ladder, and the files of its run directory beside `trainer.runs.protocol`'s.

    LADDERS/ID/spec.json       LadderSpec
    LADDERS/ID/data.jsonl      the training file, fetched from the gateway
    LADDERS/ID/report.json     the data report
    LADDERS/ID/plan.json       LadderPlan: the three parts of the data, and the instructions to try
    LADDERS/ID/rungs.json      Rungs: the rungs that are versions of the adapter by now
    LADDERS/ID/scores-EVALUATION.json   ArmScores, copied from a child evaluation when it has ended
    LADDERS/ID/job.json, job-KEY.json   JobOutcome, from a child job
    LADDERS/ID/uploads.json    Uploads; store.jsonl, store.txt: the examples of the store, and its id
    LADDERS/ID/prompts.jsonl   the prompts that the teacher answers; replies.jsonl: its replies so far
    LADDERS/ID/labels.json     Labels: how far the teacher is, and what came of it; labels.html: a sample to read
    LADDERS/ID/first_tokens.json   FirstTokens (`trainer.ladder.first_token`)
    LADDERS/ID/ladder.json, ladder.html   the report
    LADDERS/ID/result.json     LadderResult

A ladder alternates between short workers of its own and child runs: CLIMB prepares the data, an evaluation chooses the
instructions, CLIMB makes versions of the prompts, an evaluation compares them, a job trains a LoRA, an evaluation asks
it, the same for each further LoRA, and CONCLUDE writes the report. LABEL asks the teacher, before the LoRA that learns
from it is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, get_args

from pydantic import ConfigDict, Field

from adapters.costs import Prices, TokenPrices
from adapters.protocol.requests import LadderFields
from adapters.protocol.runs import FileRef, LadderContext
from trainer.evaluate.evaluations.spec import OperatorRules, ServedModel
from trainer.evaluate.scored_arms import ArmScores, ScoredArm
from trainer.runs.protocol import Frozen, RunResult
from trainer.runs.spec import TrainingRunSpec

WORKER: Final = "trainer.ladder.worker"
CLIMB: Final = "climb"
LABEL: Final = "label"
CONCLUDE: Final = "conclude"
DATA: Final = "data.jsonl"
DATA_REPORT: Final = "report.json"
PLAN: Final = "plan.json"
RUNGS: Final = "rungs.json"
UPLOADS: Final = "uploads.json"
STORE: Final = "store.txt"
UNLABELLED: Final = "unlabelled"
PROMPTS: Final = "prompts.jsonl"
REPLIES: Final = "replies.jsonl"
LABELS: Final = "labels.json"
SAMPLE: Final = "labels.html"
FIRST_TOKENS: Final = "first_tokens.json"
REPORT: Final = "ladder.json"
PAGE: Final = "ladder.html"
SCORES_PREFIX: Final = "scores-"
CANCELLED: Final = "cancelled; the versions that were made stay"
"""The last event of a cancelled ladder."""

MIN_EXAMPLES: Final = 30
"""Independent held-out examples below which no advice is given."""
CHANGING_SHARE: Final = 0.3
"""Share of the answers that state changing facts from which the advice is retrieval, whatever the score."""
HELD_OUT_SHARE: Final = 0.2
"""More than a job holds out: here the comparison is the product."""
MAX_HELD_OUT: Final = 300

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
SubsetKey = Literal["half", "quarter", "cleanest_half"]
"""A LoRA on a part of the examples, for the learning curve: no rung."""
SUBSETS: Final[tuple[SubsetKey, ...]] = get_args(SubsetKey)
TrainingKey = Literal["lora", "lora_examples", "lora_documents", "distilled", "half", "quarter", "cleanest_half"]
TRAININGS: Final[tuple[TrainingKey, ...]] = get_args(TrainingKey)
RETRIEVING: Final[Mapping[TrainingKey, RungKey]] = {
    "lora_documents": "documents",
    "lora_examples": "retrieved_examples",
}
"""The rung whose retrieval each LoRA with retrieval has."""
EvaluationPurpose = Literal["choose", "prompts"] | TrainingKey
Purpose = (
    EvaluationPurpose
    | Literal["job", "job:lora_examples", "job:lora_documents", "job:distilled"]
    | Literal["job:half", "job:quarter", "job:cleanest_half"]
)
"""What a child run is for: to choose the instructions, to compare the prompts, to train a LoRA, to ask it. The LoRA
without retrieval, on all examples, is trained by `job`."""


COMPARISONS: Final[tuple[EvaluationPurpose, ...]] = ("prompts", *TRAININGS)
"""The evaluations whose arms are compared with each other."""


def scores_file(purpose: EvaluationPurpose) -> str:
    """The name of the file with the scores of the evaluation for `purpose`."""
    return f"{SCORES_PREFIX}{purpose}.json"


def outcome_file(key: TrainingKey) -> str:
    """The name of the file that says what became of a training."""
    return "job.json" if key == "lora" else f"job-{key}.json"


def training_purpose(key: TrainingKey) -> Purpose:
    """The purpose of the job that trains a LoRA."""
    purposes: dict[TrainingKey, Purpose] = {
        "lora": "job",
        "lora_examples": "job:lora_examples",
        "lora_documents": "job:lora_documents",
        "distilled": "job:distilled",
        "half": "job:half",
        "quarter": "job:quarter",
        "cleanest_half": "job:cleanest_half",
    }
    return purposes[key]


class LadderBody(LadderFields):
    """Body of ``POST /v1/ladders``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)


class LadderSpec(TrainingRunSpec, ServedModel, OperatorRules):
    """One ladder.

    Attributes:
        keep_subsets_s: After how many seconds the gateway deletes the versions that were trained on a part of the
            examples, unless they are promoted; None: never.
        teacher_prices: None for a teacher that the engine serves, or whose prices are not set.
    """

    seed: int = 0
    keep_subsets_s: float | None = None
    prices: Prices = Prices()
    teacher_prices: TokenPrices | None = None
    body: LadderBody
    context_of_request: LadderContext


class DataFacts(Frozen):
    """What the data report says that decides the advice, whatever the scores.

    Attributes:
        examples: In the file.
        changing_facts: Number of answers that state things which change, such as prices, orders and dates.
        noisy_labels: The words of the questions say nothing about the labels, as if these were assigned at random.
        warnings: The findings' messages, for the report.
    """

    examples: int
    changing_facts: int = 0
    noisy_labels: bool = False
    warnings: tuple[str, ...] = ()


class LadderPlan(Frozen):
    """What is measured on what, fixed before anything is asked.

    Attributes:
        training: The examples that rungs may show and learn from, as a file of the gateway.
        choosing: Those on which the instructions are chosen; None if there are too few, or only one candidate.
        held_out: Those on which the rungs are compared; no rung has seen them.
        counts: The number of examples of each part, and of each subset.
        subsets: Parts of the training part, for the learning curve.
        cleaner: How many examples of the random half the cleanest half has others for.
        instructions: The system prompts to choose from, the first is the default; empty if the examples have system
            messages of their own that differ.
        answers: The closed set of answers, or empty.
        metric: The request's `metric` of every evaluation.
        facts: See `DataFacts`.
        common_answer: The share of the held-out answers that are the most frequent one; 0 for open answers.
        max_tokens: Longest answer, in tokens.
        teacher_max_tokens: Longest answer of a teacher that the engine serves, in tokens: nothing is scored, and an
            answer that is cut is lost. 0 in a plan of an earlier release.
        example_lines: The lines of the client's file that the rung with examples shows; ``why_no_examples``: the
            reason if there are none.
        required_filters: The attributes of which every example gives a value: the rungs with retrieval demand them.
        prompts: How many prompts the teacher is asked; 0 without one.
    """

    training: FileRef
    choosing: FileRef | None
    held_out: FileRef
    counts: dict[str, int]
    subsets: dict[SubsetKey, FileRef] = Field(default_factory=dict)
    cleaner: int = 0
    instructions: tuple[str, ...]
    answers: tuple[str, ...] = ()
    metric: dict[str, Any]
    why_metric: str
    facts: DataFacts
    common_answer: float = 0.0
    max_tokens: int
    teacher_max_tokens: int = 0
    example_lines: tuple[int, ...] = ()
    why_no_examples: str = "no example can be shown"
    required_filters: tuple[str, ...] = ()
    prompts: int = 0
    notes: tuple[str, ...] = ()

    def training_file(self, key: TrainingKey) -> FileRef:
        """What a LoRA learns from, but for the distilled one: a subset, or the whole training part."""
        return next((file for subset, file in self.subsets.items() if subset == key), self.training)


class Rung(Frozen):
    """One rung: what answers, and how it came to be.

    ``model``: the base, or the version `name@3`. ``settings``: the version's. ``store``: the id of a vector store that
    was made for it.
    """

    key: RungKey
    title: str
    model: str
    settings: dict[str, Any] = Field(default_factory=dict)
    store: str | None = None
    push_seconds: float = 0.0
    """How long it took to make the version."""
    held_back: str | None = None
    """Why the gateway holds the version back from `live`; None: it does not."""


class SkippedRung(Frozen):
    """A rung, or a point of the learning curve, that was not measured, and why."""

    key: RungKey | SubsetKey
    title: str
    reason: str


class Rungs(Frozen):
    """The rungs so far, the cheapest first, the chosen instructions, what was skipped, and notes for the report."""

    instructions: str | None = None
    rungs: tuple[Rung, ...] = ()
    skipped: tuple[SkippedRung, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def held_back(self) -> dict[RungKey, str]:
        """Why versions are held back from `live`, by their rungs."""
        return {rung.key: rung.held_back for rung in self.rungs if rung.held_back is not None}


Row = tuple[RungKey, ArmScores, ScoredArm]
"""A rung, the evaluation that asked it, and its arm in that."""


class Uploads(Frozen):
    """The ids of the files that the ladder has uploaded, by name."""

    files: dict[str, str] = Field(default_factory=dict)


class Labels(Frozen):
    """What a teacher made of the prompts, so far or in the end.

    Attributes:
        teacher: Its name; ``outside``: it is an endpoint of the operator's settings.
        prompts: How many it is asked.
        answered: Answers to learn from. ``refused``, ``truncated``: what was set aside.
        engine_seconds: What a teacher of the engine took of it: the time of all its requests, divided by how many were
            under way at a time.
        money: What an outside teacher's tokens cost; None where that is not known.
        file: The training file, once every prompt has a reply.
        error: Why there is none.
    """

    teacher: str
    outside: bool
    prompts: int
    answered: int = 0
    refused: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    money: float | None = None
    file: FileRef | None = None
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether no more is asked."""
        return self.file is not None or self.error is not None


class JobOutcome(Frozen):
    """What a child job left: its version and what it cost. ``examples``: those that it was given."""

    id: str
    status: str
    model: str | None = None
    error: str | None = None
    examples: int = 0
    seconds: float = 0.0
    """Device time of the whole job, with its judging."""
    training_seconds: float = 0.0
    """Of the training alone."""
    trained_tokens: int = 0


class LadderDetails(Frozen):
    """A ladder's part of the run's record.

    ``stage``: the one at which it goes on. ``purposes``: what each child run is for, by its id.
    """

    adapter: str
    stage: str = CLIMB
    purposes: dict[str, Purpose] = Field(default_factory=dict)


class LadderResult(RunResult):
    """How a ladder ended. ``advice``: its word; ``sentence``: for a reader in a hurry."""

    advice: str | None = None
    rung: RungKey | None = None
    model: str | None = None
    sentence: str | None = None
    files: tuple[str, ...] = ()
    seconds: float = 0.0
