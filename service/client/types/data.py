"""The quality report on training data."""

from typing import Literal, NotRequired, TypedDict


class HeldOutExamples(TypedDict):
    """Examples that are never trained on: uploaded, or split off the training file."""

    examples: int
    source: Literal["given", "split", "none"]
    seed: int | None
    lines: list[int]
    """Line numbers in the training file, if split off it."""


class ExampleLengths(TypedDict):
    """Tokens per example, as the engine renders it."""

    shortest: int
    median: int
    p95: int
    longest: int
    total: int
    trained: int
    """Tokens that are trained on."""


class DataFinding(TypedDict):
    """A problem in the data, and where it occurs."""

    code: str
    severity: Literal["refused", "warning", "note"]
    count: int
    """Number of lines affected; 0 if it is about the whole file."""
    message: str
    file: Literal["training", "held_out"]
    lines: list[int]
    """The first 20 lines affected, counted from 1."""


class AnswerShare(TypedDict):
    """Number of training examples with the same answer."""

    answer: str
    examples: int


class ExamplePiece(TypedDict):
    """A piece of an example, trained on or not."""

    text: str
    trained: bool


class ShownExample(TypedDict):
    """A training example as rendered."""

    line: int
    pieces: list[ExamplePiece]


class ValidationExamples(TypedDict):
    """Examples of the training file that choose the best epoch; no verdict is based on them."""

    examples: int
    lines: list[int]


class QualityReport(TypedDict):
    """Quality report on a data file. Lengths are in tokens."""

    file: str
    sha256: str
    format: str
    examples: int
    trained_on: int
    dropped: int
    """Examples left out as too long."""
    held_out: HeldOutExamples
    validation: NotRequired[ValidationExamples | None]
    """Set aside from the training examples to find the best epoch."""
    shortened: NotRequired[int]
    """Examples that were truncated because they are too long."""
    lengths: ExampleLengths | None
    max_length: int
    findings: list[DataFinding]
    system_prompt: str | None
    """The system prompt that all examples share."""
    answers: list[AnswerShare]
    """The most frequent answers, if answers are a closed set."""
    distinct_answers: int
    shown: list[ShownExample]
    size: str
    """What this many examples can teach, as a sentence."""


class DataCheck(QualityReport):
    """Quality report on a data file, and whether a job would refuse it."""

    refused: bool
