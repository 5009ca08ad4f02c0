"""Text as the terms that BM25 counts: words, folded and stemmed, each as a 64-bit hash.

A hash needs no dictionary that two processes would have to share: the embedder counts a document's terms, the gateway a
question's, and the same stem is the same number everywhere. Among a million stems two share one with a probability of
3e-8.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np
import snowballstemmer

from service.knowledge.segment import Counts, Terms

HEADING_WEIGHT: Final = 3
"""How often a word of a heading counts; chosen on half of Cranfield's queries, see RETRIEVAL.md."""
MAX_COUNT: Final = 65_535
CACHED_WORDS: Final = 50_000
MAX_WORD: Final = 64
"""Characters of a word that count: what is longer is no word."""
STOP_WORDS: Final = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "over",
        "s",
        "shall",
        "should",
        "so",
        "such",
        "t",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "too",
        "under",
        "up",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
_WORD: Final = re.compile(r"[^\W_]+")
_WIDE: Final = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힯]")
"""Scripts that put no space between words: each character is a term of its own."""


class Analyzer:
    """Splits text into terms and counts them. Not thread-safe: the stemmer has state."""

    def __init__(self) -> None:
        stem = snowballstemmer.stemmer("english").stemWord

        @lru_cache(maxsize=CACHED_WORDS)
        def term(word: str) -> int | None:
            if word in STOP_WORDS:
                return None
            return int.from_bytes(blake2b(stem(word).encode(), digest_size=8).digest(), "big")

        self._term = term

    def terms(self, text: str) -> list[int]:
        """The terms of a text, in order, without stop words."""
        candidates = (self._term(word) for word in words(text))
        return [term for term in candidates if term is not None]

    def bag(self, heading: str, text: str) -> tuple[Terms, Counts]:
        """The distinct terms of a passage, ascending, and how often each occurs."""
        counts = Counter(self.terms(text))
        for term in self.terms(heading):
            counts[term] += HEADING_WEIGHT
        ordered = sorted(counts)
        return (
            np.array(ordered, dtype=np.uint64),
            np.array([min(counts[term], MAX_COUNT) for term in ordered], dtype=np.uint16),
        )


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without accents."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFC", "".join(c for c in folded if not unicodedata.combining(c)))
        folded = _WIDE.sub(lambda match: f" {match[0]} ", folded)
    return [word[:MAX_WORD] for word in _WORD.findall(folded)]
