"""Properties of an answer that do not depend on the reference: reported, but they never decide."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from trainer.evaluate.metrics.base import words

_I_AM: Final = r"(?:i['’]?m|i am|we['’]re|we are)"
_CANNOT: Final = r"\b(?:can(?:no|['’])t|can not|unable|not able|won['’]t|will not)\b"
_REFUSAL: Final = re.compile(
    rf"^\W*(?:(?:{_I_AM}\s+(?:\w+\s+)?(?:sorry|afraid)|sorry|apologies|unfortunately)\b[^.!?]{{0,60}}{_CANNOT}"
    rf"|{_I_AM}\s+(?:\w+\s+)?(?:unable|not able)\b"
    r"|i\s+(?:can(?:['’]?t|not)|could\s?n['’]t|won['’]t|will not)\s+(?:\w+\s+)?"
    r"(?:help|assist|answer|provide|do|comply|fulfil|discuss|support|tell|give)\b"
    r"|as an? (?:ai|artificial|language model)\b)",
    re.IGNORECASE,
)
"""How refusals begin in English; other languages are not detected. An apology alone is not a refusal."""


@dataclass(frozen=True, slots=True)
class JudgePreference:
    """A judge's preference: 0.5 until a judge has voted (`trainer.evaluate.preference`)."""

    name: ClassVar[str] = "judge"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """0.5, a tie."""
        return 0.5


@dataclass(frozen=True, slots=True)
class Length:
    """The number of words in the answer."""

    name: ClassVar[str] = "length_words"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = False

    def score(self, answer: str, reference: str) -> float:
        """The count, 0 or more."""
        return float(len(words(answer)))


@dataclass(frozen=True, slots=True)
class Refusal:
    """1 if the answer is empty or begins like a refusal in English."""

    name: ClassVar[str] = "refusal"
    binary: ClassVar[bool] = True
    decides: ClassVar[bool] = False

    def score(self, answer: str, reference: str) -> float:
        """1.0 if it is a refusal, else 0.0."""
        return float(not answer.strip() or _REFUSAL.search(answer) is not None)
