"""The quality report of a data file, made before any training.

Plain data, for the API, a job's result files and the HTML report.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import PrivateAttr

from adapters.protocol.reports import DataFinding, HeldOutExamples, QualityReport
from adapters.wording import counted

MAX_CLOSED_ANSWER_CHARS: Final = 80
"""Length above which answers are no closed set."""
SHOWN_LINES: Final = 20
TOO_FEW_HELD_OUT: Final = "too_few_held_out"
"""Code of the finding that no version trained on the data can pass."""


class Finding(DataFinding):
    """One kind of problem. ``lines`` (from 1, in ``file``) are the first SHOWN_LINES of ``count`` affected lines."""

    file: Literal["training", "held_out"] = "training"
    lines: tuple[int, ...] = ()
    _every_line: tuple[int, ...] = PrivateAttr(())

    @property
    def every_line(self) -> tuple[int, ...]:
        """All affected lines; of a stored report, which does not keep them, ``lines``."""
        return self._every_line or self.lines

    def about(self, lines: tuple[int, ...]) -> Self:
        """The same, with all affected lines."""
        self._every_line = lines
        return self


class HeldOut(HeldOutExamples):
    """The held-out examples: from their own file, or split off the training file with ``seed``. ``lines``: all that the
    split drew, those that are too long to be asked included."""

    seed: int | None = None
    lines: tuple[int, ...] = ()


class Report(QualityReport):
    """The whole report. A job trains only if ``refused`` is false."""

    held_out: HeldOut
    findings: tuple[Finding, ...]

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
        return f"{counted(examples, 'example')} over {distinct_answers} answers, {each:.0f} each: {expectation}."
    if examples < 50:
        return (
            f"{counted(examples, 'example')}: expect no more than a hint of the style; a prompt with three of them may "
            "do as well."
        )
    if examples < 500:
        return f"{counted(examples, 'example')}: expect the style to be learned, not full coverage."
    if examples < 5000:
        return f"{counted(examples, 'example')}: enough for style and common cases; facts belong in retrieval."
    return f"{counted(examples, 'example')}: more than style needs; 1,000 curated ones may do better."
