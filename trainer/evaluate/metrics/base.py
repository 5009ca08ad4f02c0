"""What every metric is."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Protocol

_MARKS: Final = r"\s\"'`“”‘’«»()\[\]*_,:;!?"
_EDGES: Final = re.compile(
    # neither the sign nor the point of a number, nor the minus of a mark: -5, .5 and B- are not 5, 5 and B
    rf"^(?:[{_MARKS}]|-(?!\.?\d)|\.(?!\d))+|(?:[{_MARKS}.]|(?<!\w)-)+$"
)
_WORD: Final = re.compile(r"\w+", re.UNICODE)


class Metric(Protocol):
    """Scores one answer.

    ``binary``: scores are 0 or 1. ``decides``: it may be a verdict's primary metric: from 0 to 1, more is better, and
    no mere matter of style.
    """

    @property
    def name(self) -> str:
        """As it stands in requests and reports."""

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""

    @property
    def decides(self) -> bool:
        """Whether it may be the primary metric."""

    def score(self, answer: str, reference: str) -> float:
        """The score of an answer to an example whose author answered `reference`."""


def normalised(text: str) -> str:
    """For comparing short answers: NFKC, case folded, spaces joined, and without quotes and stops at either end.

    What stands in the middle stays: `card-lost` and `card lost` are two answers. So does what makes another answer at
    an end: `-5`, `.5`, `B-`; and an answer that is nothing but marks.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _EDGES.sub("", folded) or folded


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores of the case-folded text."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
