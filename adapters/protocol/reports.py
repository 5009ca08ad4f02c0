"""Parts of reports and of progress, as the trainer writes them and the gateway's OpenAPI document shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from adapters.protocol.runs import ProtocolModel


class ExampleLengths(ProtocolModel):
    """Tokens per example, as the engine renders it."""

    shortest: int
    median: int
    p95: int
    longest: int
    total: int
    trained: int = Field(description="Tokens that count towards the loss.")


class AnswerShare(ProtocolModel):
    """How many training examples have this answer."""

    answer: str
    examples: int


class ExamplePiece(ProtocolModel):
    """A segment of an example's text, and whether it is trained on."""

    text: str
    trained: bool


class ShownExample(ProtocolModel):
    """An example as it is trained on."""

    line: int
    pieces: tuple[ExamplePiece, ...]


class ReportedFinding(ProtocolModel):
    """A kind of problem in the data."""

    code: str
    severity: Literal["refused", "warning", "note"]
    count: int = Field(description="Number of affected lines; 0 if it is about the whole file.")


class DataFinding(ReportedFinding):
    """A kind of problem in the data, and its lines."""

    message: str
    file: Literal["training", "held_out"]
    lines: tuple[int, ...] = Field(description="The first 20 affected lines, counted from 1.")


class HeldOutSummary(ProtocolModel):
    """The examples that are never trained on."""

    examples: int
    source: Literal["given", "split", "none"]


class HeldOutExamples(HeldOutSummary):
    """The examples that are never trained on: given, or split off the training file."""

    seed: int | None
    lines: tuple[int, ...] = Field(description="Lines of the training file, if they were split off from it.")


class ValidationExamples(ProtocolModel):
    """The examples of the training file that choose the best epoch; no verdict is based on them."""

    examples: int
    lines: tuple[int, ...] = Field(description="Lines of the training file.")


class QualityReport(ProtocolModel):
    """The contents of a data file and its problems."""

    file: str
    sha256: str
    format: str
    examples: int
    """In the file; of these, `trained_on` are left after the held-out and validation parts and what was dropped."""
    trained_on: int
    dropped: int = Field(description="Examples left out because they are too long.")
    held_out: HeldOutExamples
    validation: ValidationExamples | None = Field(
        None, description="Set aside from the training examples to find the best epoch."
    )
    shortened: int = Field(0, description="Examples that were truncated because they are too long.")
    lengths: ExampleLengths | None
    max_length: int
    findings: tuple[DataFinding, ...]
    system_prompt: str | None = Field(description="The system prompt that every example has.")
    answers: tuple[AnswerShare, ...] = Field(description="The most frequent answers, if the answers are a closed set.")
    distinct_answers: int
    shown: tuple[ShownExample, ...]
    size: str = Field(description="What this number of examples can teach, as a sentence.")


class EvaluationProgress(ProtocolModel):
    """An evaluation's progress: `done` of `total` items of its current `stage`."""

    stage: str
    done: int
    total: int


class RunAhead(ProtocolModel):
    """The run that has the worker which another run waits for. Nothing that its caller may not see is named."""

    id: str | None = Field(description="Null if the caller may not see the run.")
    adapters: tuple[str, ...] = Field(description="The adapters that it is about; empty if the caller may not see it.")
    stage: str | None = Field(description="What it does now; null if it has not told yet, or may not be seen.")
    done: int | None = Field(description="How many of `total` training steps, or items of the stage, are done.")
    total: int | None
    seconds_left: float | None = Field(
        description="Until its stage ends, at the pace that was measured so far; null if there is no measurement."
    )


class Waiting(ProtocolModel):
    """What an unfinished run waits for."""

    reason: Literal["turn", "restart", "live_traffic", "gateway"] = Field(
        description="`turn`: other runs come first. `restart`: its worker died, and is started again in a moment. "
        "`live_traffic`: training is paused while callers' requests are served. `gateway`: the gateway, or its engine, "
        "cannot answer now."
    )
    position: int | None = Field(
        description="Of `turn`: its place in the line, counting the run that is under way: 2 starts next."
    )
    behind: RunAhead | None = Field(description="Of `turn`: the run that goes first.")
    message: str = Field(description="The same as a sentence.")


class ArmMean(ProtocolModel):
    """An arm's mean of a metric, with its interval."""

    label: str
    mean: float
    low: float
    high: float
    examples: int


class ArmDifference(ProtocolModel):
    """How much higher one arm scores than another, with its interval."""

    of: str
    against: str
    estimate: float
    """How much higher `of` scored than `against` over the same examples: -1 to 1, but for nats a token."""
    low: float
    high: float
    confidence: float
    method: str
    examples: int
    wins: int
    losses: int
    p_value: float | None = Field(None, description="McNemar's exact test, for right-or-wrong scores.")
    noise: float | None = Field(None, description="Standard deviation between runs, if questions were repeated.")
    bound: float = Field(0.0, description="The value that `low` must exceed.")
    detectable: float | None = Field(
        None, description="Smallest true difference that this number of examples can show."
    )
    needed: int | None = Field(None, description="Number of examples needed to show a difference of this size.")
    needed_if_higher: int | None = Field(
        None, description="The same if the true difference is one standard error further from the bound."
    )
    needed_if_lower: int | None = Field(
        None, description="The same if it is one standard error closer; null if no practical number would do."
    )


class ReportJudge(ProtocolModel):
    """What a judge found; an example's score is 1 where the candidate is preferred, 0 where the base is."""

    judge: str
    scores: tuple[float, ...]
    """½ for a tie. Examples that it would not look at are left out; where it was away there are none."""
    refused: tuple[int, ...] = Field(
        (), description="Positions, from 0, of the examples that `scores` leaves out: its endpoint refused the pair."
    )
    counted: bool = Field(description="Whether the judge agrees with people enough to count.")
    missed: bool = False
    """It would have counted, but too few of its votes could be had."""
    lean_low: float | None = Field(
        None, description="Interval of how much more it favours the candidate than people do; 0.1 is 10 points of 100."
    )
    lean_high: float | None = None
    sentence: str
    numbers: dict[str, Any] = Field(default_factory=dict)


class HumanPreference(ProtocolModel):
    """Which answers people preferred, blind, on all pairs of an evaluation. It decides nothing in a verdict."""

    of: str = Field(description="The candidate's arm.")
    against: str = Field(description="The base's arm that it was compared with: the strongest.")
    pairs: int = Field(description="With a choice: all of them, unless the review was ended early.")
    reviewers: int = Field(description="Choices on each pair, each by another key.")
    candidate: int = Field(description="Choices for the candidate's answer.")
    tie: int
    base: int
    mean: float = Field(
        description="Mean over independent questions of 1 for the candidate, 0.5 for a tie, 0 for the base; 0.5: even."
    )
    low: float
    high: float
    confidence: float = Field(0.95, description="Of both intervals, two-sided.")
    differing: int | None = Field(None, description="Questions with different answers, from which the pairs are drawn.")
    alike: int | None = Field(None, description="Questions with the same answer twice; these are not shown.")
    agreed: float | None = Field(
        None,
        description="How often two reviewers of a pair chose the same; null with one reviewer, or if no pair has all "
        "its choices.",
    )
    kappa: float | None = Field(None, description="Fleiss' kappa; null with one reviewer, or if all chose the same.")
    kappa_low: float | None = None
    kappa_high: float | None = None
    sentence: str


class ReportMeasure(ProtocolModel):
    """A secondary metric: each arm's mean, by label."""

    name: str
    means: dict[str, float | None]
    """None where the arm has none."""


class ReportSample(ProtocolModel):
    """An example, with the answers and scores of both sides."""

    kind: Literal["best", "worst", "random"]
    id: str
    asked: str
    reference: str
    base: str
    """The strongest of the base's arms, or the first arm; `candidate`: the candidate, or the last arm."""
    candidate: str
    base_score: float
    candidate_score: float


class LossPoint(ProtocolModel):
    """Losses after a step, in nats per trained token."""

    step: int
    training: float | None = None
    held_out: float | None = None


class ReportCost(ProtocolModel):
    """Time in seconds, and the price in the operator's currency."""

    training_s: float = 0.0
    trained_tokens: int = 0
    device: str = ""
    price: float = 0.0
    evaluation_s: float = 0.0
    """From the first question to the verdict."""
