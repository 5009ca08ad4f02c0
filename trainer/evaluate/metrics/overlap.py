"""Overlap of a free-text answer with the reference: words in common, words in order, edit distance."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from rapidfuzz.distance import LCSseq, Levenshtein

from trainer.evaluate.metrics.base import normalised, words


@dataclass(frozen=True, slots=True)
class TokenF1:
    """F1 over the words of answer and reference as multisets, in any order.

    P. Rajpurkar et al., SQuAD, EMNLP 2016, section 6.1; here articles count and the order of words does not.
    """

    name: ClassVar[str] = "token_f1"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """F1, from 0 to 1; 1 if neither text has a word."""
        answer_words, reference_words = words(answer), words(reference)
        common = sum((Counter(answer_words) & Counter(reference_words)).values())
        return _f1(common, len(answer_words), len(reference_words))


@dataclass(frozen=True, slots=True)
class RougeL:
    """F1 over the longest common subsequence of words.

    C.-Y. Lin, ROUGE: A package for automatic evaluation of summaries, 2004, section 3.1, with beta = 1 as in the usual
    implementations, and without stemming, which knows English alone.
    """

    name: ClassVar[str] = "rouge_l"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """F1, from 0 to 1; 1 if neither text has a word."""
        answer_words, reference_words = words(answer), words(reference)
        return _f1(LCSseq.similarity(answer_words, reference_words), len(answer_words), len(reference_words))


@dataclass(frozen=True, slots=True)
class EditSimilarity:
    """1 minus Levenshtein's distance over the longer length, in characters, after normalising as exact match does."""

    name: ClassVar[str] = "edit_similarity"
    binary: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def score(self, answer: str, reference: str) -> float:
        """From 0 to 1 (equal after normalisation)."""
        return float(Levenshtein.normalized_similarity(normalised(answer), normalised(reference)))


def _f1(common: int, answer_count: int, reference_count: int) -> float:
    return 2 * common / (answer_count + reference_count) if answer_count + reference_count else 1.0
