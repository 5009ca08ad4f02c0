"""The quality report of a data file, made before any training.

Plain data, for the API, a job's result files and the HTML report.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

SHOWN_LINES: Final = 20


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class Finding(_Frozen):
    """One kind of problem. ``lines`` (from 1, in ``file``) are the first SHOWN_LINES of ``count`` affected lines."""

    code: str
    severity: Literal["refused", "warning"]
    message: str
    file: Literal["training", "held_out"] = "training"
    count: int
    lines: tuple[int, ...] = ()


class Lengths(_Frozen):
    """Statistics of tokens per example, rendered as in the engine; ``trained`` counts all tokens in the loss."""

    shortest: int
    median: int
    p95: int
    longest: int
    total: int
    trained: int


class Segment(_Frozen):
    """A part of a rendered example whose tokens are all trained or all untrained."""

    text: str
    trained: bool


class RenderedExample(_Frozen):
    """An example as rendered for the training."""

    line: int
    pieces: tuple[Segment, ...]


class HeldOut(_Frozen):
    """The held-out examples: from their own file, or split off the training file with ``seed``."""

    examples: int
    source: Literal["given", "split", "none"]
    seed: int | None = None
    lines: tuple[int, ...] = ()
    """Lines of the training file, if they were split off it."""


class AnswerShare(_Frozen):
    """The number of training examples with one answer."""

    answer: str
    examples: int


class Report(_Frozen):
    """The whole report. A job trains only if ``refused`` is false."""

    file: str
    sha256: str
    format: str
    examples: int
    """In the file. ``trained_on`` is what remains without held-out examples and those dropped as too long."""
    trained_on: int
    dropped: int
    held_out: HeldOut
    lengths: Lengths | None
    max_length: int
    findings: tuple[Finding, ...]
    system_prompt: str | None
    """The system message that all examples share, if they do."""
    answers: tuple[AnswerShare, ...]
    """The most frequent answers if the answers are a closed set; else empty."""
    distinct_answers: int
    shown: tuple[RenderedExample, ...]
    size: str
    """A sentence on what this many examples can teach."""

    @property
    def refused(self) -> bool:
        """Whether a finding forbids training."""
        return any(finding.severity == "refused" for finding in self.findings)


def describe_size(examples: int, distinct_answers: int, closed: bool) -> str:
    """A sentence on what this many examples can be expected to teach."""
    if closed:
        each = examples / max(1, distinct_answers)
        expectation = (
            "expect the frequent answers to be learned, not the rare ones"
            if each < 10
            else "expect all answers to be learned"
        )
        return f"{examples} examples over {distinct_answers} answers, {each:.0f} each: {expectation}."
    if examples < 50:
        return (
            f"{examples} examples: expect no more than a hint of the style; a prompt with three of them may do as well."
        )
    if examples < 500:
        return f"{examples} examples: expect the style to be learned, not full coverage."
    if examples < 5000:
        return f"{examples} examples: enough for style and common cases; facts belong in retrieval."
    return f"{examples} examples: more than style needs; 1,000 curated ones may do better."


def held_out_warning(examples: int, min_examples: int) -> str | None:
    """A warning if there are too few held-out examples for a pass; None if there are ``min_examples`` or more."""
    if examples >= min_examples:
        return None
    return f"Only {examples} examples are held out, but a pass needs {min_examples}: send a larger validation_file."
