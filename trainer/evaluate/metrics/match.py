"""Right or wrong: the answer is the reference, holds it, or has a given form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import regex

from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.base import normalised

REGEX_TIMEOUT_S: Final = 1.0
"""Longest time that a pattern may take over one answer, s: a pattern may be such that it never ends."""
REFERENCE: Final = "{reference}"


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """1 where answer and reference are the same but for case, spaces, and quotes and stops at the ends."""

    name: ClassVar[str] = "exact_match"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """1 or 0."""
        return float(normalised(answer) == normalised(reference))


@dataclass(frozen=True, slots=True)
class Contains:
    """1 where the answer holds the reference, as exact match compares them; kind to answers that say everything."""

    name: ClassVar[str] = "contains"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """1 or 0."""
        wanted = normalised(reference)
        return float(bool(wanted) and wanted in normalised(answer))


@dataclass(frozen=True, slots=True)
class Regex:
    """1 where the pattern is found in the answer; `{reference}` in it stands for the reference's own text.

    Raises:
        EvaluationInvalid: The pattern is none, or took more than a second over one answer.
    """

    pattern: str
    name: ClassVar[str] = "regex"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            regex.compile(self.pattern.replace(REFERENCE, "x"))
        except regex.error as error:
            raise EvaluationInvalid(f"`pattern` is no regular expression: {error}") from error

    def score(self, answer: str, reference: str) -> float:
        """1 or 0."""
        pattern = self.pattern.replace(REFERENCE, regex.escape(reference))
        try:
            return float(regex.search(pattern, answer, timeout=REGEX_TIMEOUT_S) is not None)
        except TimeoutError as error:
            raise EvaluationInvalid(f"`pattern` took more than {REGEX_TIMEOUT_S:g} s over one answer") from error
