"""The quality report: what a data file holds and what is wrong with it, before a second of training.

Plain data, so that it travels: over HTTP, into a job's result files, onto the HTML report.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict

SHOWN_LINES: Final = 20


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class Finding(_Frozen):
    """One kind of fault. ``lines`` (from 1, in ``file``) are the first SHOWN_LINES of the ``count`` lines at fault."""

    code: str
    severity: Literal["refused", "warning"]
    message: str
    file: Literal["training", "held_out"] = "training"
    count: int
    lines: tuple[int, ...] = ()


class Lengths(_Frozen):
    """Tokens an example, rendered as the engine renders it; ``trained`` counts the tokens that the loss sees."""

    shortest: int
    median: int
    p95: int
    longest: int
    total: int
    trained: int


class Piece(_Frozen):
    """A run of a rendered example's text whose tokens are all trained, or all not."""

    text: str
    trained: bool


class Shown(_Frozen):
    """An example as it is trained on."""

    line: int
    pieces: tuple[Piece, ...]


class HeldOut(_Frozen):
    """The examples never trained on: given, or split off the training file by ``seed``."""

    examples: int
    source: Literal["given", "split", "none"]
    seed: int | None = None
    lines: tuple[int, ...] = ()
    """Of the training file, where they were split off it."""


class AnswerShare(_Frozen):
    """How often one answer stands in the training examples."""

    answer: str
    examples: int


class Report(_Frozen):
    """All that was found. A job trains only where ``refused`` is false."""

    file: str
    sha256: str
    format: str
    examples: int
    """In the file; of these, ``trained_on`` are left after the held-out part and what was dropped as too long."""
    trained_on: int
    dropped: int
    held_out: HeldOut
    lengths: Lengths | None
    max_length: int
    findings: tuple[Finding, ...]
    system_prompt: str | None
    """The one that every example has, if there is one."""
    answers: tuple[AnswerShare, ...]
    """The most frequent answers, where the answers are a closed set; else empty."""
    distinct_answers: int
    shown: tuple[Shown, ...]
    size: str
    """An honest word on what so many examples can teach."""

    @property
    def refused(self) -> bool:
        """Whether a finding forbids training."""
        return any(finding.severity == "refused" for finding in self.findings)


def word_on_size(examples: int, distinct_answers: int, closed: bool) -> str:
    """What ``examples`` can be expected to teach."""
    if closed:
        each = examples / max(1, distinct_answers)
        few = (
            "expect the frequent answers, not the rare ones" if each < 10 else "expect the set of answers to be learnt"
        )
        return f"{examples} examples over {distinct_answers} answers, {each:.0f} each: {few}."
    if examples < 50:
        return f"{examples} examples: expect a hint of the form, no more; a prompt with three of them may do as well."
    if examples < 500:
        return f"{examples} examples: expect form, not coverage."
    if examples < 5000:
        return f"{examples} examples: enough for form and for the usual cases; facts belong into retrieval."
    return f"{examples} examples: more than form needs; 1,000 curated ones may do better than all of these."


def word_on_held_out(examples: int, least: int) -> str | None:
    """What so few held-out examples mean for the verdict; None where there are ``least`` or more."""
    if examples >= least:
        return None
    return f"{examples} examples are held out, and under {least} no verdict is a pass: name a file of {least} or more."
