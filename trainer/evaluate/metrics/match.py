"""Binary metrics: the answer equals the reference, contains it, or matches a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import regex

from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.base import normalised

REGEX_TIMEOUT_S: Final = 1.0
"""Time limit for one pattern on one answer, in seconds: backtracking may otherwise never end."""
REFERENCE: Final = "{reference}"


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """1 if answer and reference are equal after `normalised` (case, spaces, quotes and punctuation at the ends)."""

    name: ClassVar[str] = "exact_match"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """1.0 if both are equal, else 0.0."""
        return float(normalised(answer) == normalised(reference))


@dataclass(frozen=True, slots=True)
class Contains:
    """1 if the answer contains the reference after `normalised`. An answer that lists everything scores 1 as well."""

    name: ClassVar[str] = "contains"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """1.0 if the reference is not empty and in the answer, else 0.0."""
        expected = normalised(reference)
        return float(bool(expected) and expected in normalised(answer))


@dataclass(frozen=True, slots=True)
class Regex:
    """1 if the pattern is found in the answer; `{reference}` in it is replaced by the escaped reference.

    Raises:
        EvaluationInvalid: The pattern is invalid, or exceeds REGEX_TIMEOUT_S on an answer.
    """

    pattern: str
    name: ClassVar[str] = "regex"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            regex.compile(self.pattern.replace(REFERENCE, "x"))
        except regex.error as error:
            raise EvaluationInvalid(f"`pattern` is not a valid regular expression: {error}") from error

    def score(self, answer: str, reference: str) -> float:
        """1.0 if the pattern matches anywhere in the answer, else 0.0. Raises EvaluationInvalid."""
        pattern = self.pattern.replace(REFERENCE, regex.escape(reference))
        try:
            return float(regex.search(pattern, answer, timeout=REGEX_TIMEOUT_S) is not None)
        except TimeoutError as error:
            raise EvaluationInvalid(
                f"`pattern` took more than {REGEX_TIMEOUT_S:g} s on one answer; simplify it"
            ) from error
