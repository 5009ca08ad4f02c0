"""The protocol of metrics, and text normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

_MARKS: Final = r"\s\"'`“”‘’«»()\[\]_,:;!?"


def _edges(star: str) -> re.Pattern[str]:
    # keep the sign and the point of a number and the minus of a grade: -5, .5 and B- are not 5, 5 and B
    return re.compile(rf"^(?:[{_MARKS}*]|-(?!\.?\d)|\.(?!\d))+|(?:[{_MARKS}.]|{star}|(?<!\w)-)+$")


_EDGES: Final = _edges(r"\*")
_EDGES_BUT_GRADES: Final = _edges(r"(?<![^\W\d_])\*")
_UNSPACED: Final = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana, ideographs
    "\U0001b000-\U0001b16f\U00020000-\U000323af"
)
"""Scripts that put no spaces between words."""
_VOWELS: Final = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f71-\u0f84\u102b-\u103e\u17b4-\u17d3"
)
"""Their vowel signs and tones, which belong to the character before."""
_WORD: Final = re.compile(rf"(?=\w)[{_UNSPACED}][{_VOWELS}]*|[^\W{_UNSPACED}]+")


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
    `.5`, `B-`, and `A*` where that asterisk is the only one), and an answer of punctuation only.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    edges = _EDGES_BUT_GRADES if folded.count("*") == 1 else _EDGES  # two or more are Markdown
    return edges.sub("", folded) or folded


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores of the case-folded text; in scripts that put no spaces between words
    (Chinese, Japanese, Thai, …) every character."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
