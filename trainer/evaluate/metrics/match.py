"""Binary metrics: the answer equals the reference, contains it, or matches a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from trainer.evaluate.metrics.base import normalised
from trainer.evaluate.metrics.patterns import check_template, find_reference

_NAME: Final = "`pattern`"


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
    """1 if the pattern is found in the answer; `{reference}` in it stands for the reference, as one group.

    Raises:
        EvaluationInvalid: The pattern is invalid or too large (`trainer.evaluate.metrics.patterns`), or takes too long
            on an answer.
    """

    pattern: str
    name: ClassVar[str] = "regex"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_template(self.pattern, _NAME)

    def score(self, answer: str, reference: str) -> float:
        """1.0 if the pattern matches anywhere in the answer, else 0.0. Raises EvaluationInvalid."""
        return float(find_reference(self.pattern, answer, reference, _NAME))
