"""The protocol of metrics, and text normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

_MARKS: Final = r"\s\"'`“”‘’«»()\[\]*_,:;!?"
_EDGES: Final = re.compile(
    # keep the sign and the point of a number and the minus of a grade: -5, .5 and B- are not 5, 5 and B
    rf"^(?:[{_MARKS}]|-(?!\.?\d)|\.(?!\d))+|(?:[{_MARKS}.]|(?<!\w)-)+$"
)
_WORD: Final = re.compile(r"\w+", re.UNICODE)


class Metric(Protocol):
    """Scores one answer.

    ``binary``: scores are 0 or 1. ``decides``: it may be a verdict's primary metric: scores are from 0 to 1, higher is
    better, and they measure more than style.
    """

    @property
    def name(self) -> str:
        """Its name in requests and reports."""

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""

    @property
    def decides(self) -> bool:
        """Whether it may be the primary metric."""

    def score(self, answer: str, reference: str) -> float:
        """The score of an answer to an example whose author answered `reference`."""


@runtime_checkable
class Batched(Protocol):
    """A metric that scores texts faster if it has seen them together."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Take up the texts that will be scored."""


def normalised(text: str) -> str:
    """Normalise a short answer: NFKC, case folded, spaces collapsed, quotes and punctuation stripped at both ends.

    Punctuation inside stays: `card-lost` and `card lost` differ. So do signs that change the answer at an end (`-5`,
    `.5`, `B-`), and an answer of punctuation only.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _EDGES.sub("", folded) or folded


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores of the case-folded text."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
