"""The quality report: what a data file holds and what is wrong with it, before a second of training.

Plain data, so that it travels: over HTTP, into a job's result files, onto the HTML report.
"""

from __future__ import annotations

from typing import Final, Literal

from adapters.protocol.reports import DataFinding, HeldOutExamples, QualityReport

SHOWN_LINES: Final = 20


class Finding(DataFinding):
    """One kind of fault. ``lines`` (from 1, in ``file``) are the first SHOWN_LINES of the ``count`` lines at fault."""

    file: Literal["training", "held_out"] = "training"
    lines: tuple[int, ...] = ()


class HeldOut(HeldOutExamples):
    """The examples never trained on: given, or split off the training file by ``seed``."""

    seed: int | None = None
    lines: tuple[int, ...] = ()


class Report(QualityReport):
    """All that was found. A job trains only where ``refused`` is false."""

    held_out: HeldOut
    findings: tuple[Finding, ...]

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
