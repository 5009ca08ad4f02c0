"""Ranks passages for a question: a weighted sum of BM25 and cosine over all rows, then reranking with feedback.

BM25 is Robertson and Zaragoza's (The Probabilistic Relevance Framework, 2009, eq. 3.15) with Lucene's idf, which is
never negative. It is divided by the most that any passage could reach with this question, and a negative cosine counts
as none, so that both lie between 0 and 1 whatever else is in the store: Bruch, Gai and Ingber, An Analysis of Fusion
Functions for Hybrid Retrieval (2023), call that the theoretical normalisation. A score therefore means the same in two
stores, and a threshold on it means something.

The second look is Rocchio's (1971) with the best passages taken for relevant, as in pseudo-relevance feedback: the
question's vector moves towards theirs, and the cosines are taken again. The scores are then shrunk so that the best one
is what it was: the order changes, and what a score means does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.knowledge.index.part import Floats, IndexPart, Ints
from service.knowledge.segment import Counts, Vectors

K1: Final = 2.0
B: Final = 0.75
"""K1 and B were chosen on half of Cranfield's queries, see RETRIEVAL.md."""
DEFAULT_VECTOR_WEIGHT: Final = 0.5
FEEDBACK: Final = 0.5
"""How far the question moves towards the best passages of the first ranking; 0: no reranking."""
FEEDBACK_PASSAGES: Final = 3
MAX_RERANKED: Final = 1000
"""Maximum number of passages of a part that are reranked."""
MIN_SCORE: Final = 1e-6

Postings = Sequence[tuple[Ints, Counts]]


@dataclass(frozen=True, slots=True)
class Question:
    """A question in the form that ranking needs.

    Attributes:
        terms: Distinct terms.
        vector: (dimensions), of length 1.
        weight: Of the cosine, 0 to 1; BM25 has the rest.
        k: Maximum number of hits.
        threshold: Minimum score.
        feedback: How far the vector moves for reranking; 0: no reranking.
    """

    terms: tuple[int, ...]
    vector: Vectors
    weight: float
    k: int
    threshold: float
    feedback: float = FEEDBACK


@dataclass(frozen=True, slots=True)
class Hit:
    """A row and its score, 0 to 1."""

    part: IndexPart
    row: int
    score: float

    @property
    def place(self) -> tuple[int, int]:
        """The segment's number in the passage file, and the row's position in the segment."""
        return int(self.part.segments[self.row]), int(self.part.positions[self.row])


def rank(parts: Sequence[IndexPart], question: Question, masks: Sequence[NDArray[np.bool_]] | None = None) -> list[Hit]:
    """The best rows of one store, best first.

    Args:
        parts: The store's.
        masks: For each part which of its rows count; None is all. What words are worth is taken from all rows.
    """
    lexical_parts = bm25(parts, question.terms)
    allowed = [part.alive for part in parts]
    if masks is not None:
        allowed = [alive & mask for alive, mask in zip(allowed, masks, strict=True)]
    scores = _scores(parts, lexical_parts, allowed, question)
    if question.weight > 0 and question.feedback > 0:
        scores = _rerank_with_feedback(parts, lexical_parts, scores, question)
    return _best(parts, scores, question.k, max(question.threshold, 0.0))


def _scores(
    parts: Sequence[IndexPart],
    lexical_parts: Sequence[Floats],
    allowed: Sequence[NDArray[np.bool_]],
    question: Question,
) -> list[Floats]:
    """Scores of all rows of each part; -1 for rows that are filtered out."""
    all_scores: list[Floats] = []
    for part, lexical_scores, counts in zip(parts, lexical_parts, allowed, strict=True):
        scores = np.float32(1.0 - question.weight) * lexical_scores
        if question.weight > 0:
            scores += np.float32(question.weight) * np.clip(part.vectors @ question.vector, 0.0, 1.0)
        scores[~counts] = -1.0
        all_scores.append(scores)
    return all_scores


def _rerank_with_feedback(
    parts: Sequence[IndexPart], lexical_parts: Sequence[Floats], scores: Sequence[Floats], question: Question
) -> list[Floats]:
    """Scores of the best rows of the first ranking for the moved question; -1 for all others."""
    first = _best(parts, scores, FEEDBACK_PASSAGES, MIN_SCORE)
    if not first:
        return list(scores)
    moved = _move_towards(question, first)
    all_scores: list[Floats] = []
    for part, lexical_scores, before in zip(parts, lexical_parts, scores, strict=True):
        rows = _top(before, MAX_RERANKED, MIN_SCORE)
        after = np.full(part.size, -1.0, dtype=np.float32)
        cosines = np.clip(part.vectors[rows] @ moved, 0.0, 1.0)
        after[rows] = np.float32(1.0 - question.weight) * lexical_scores[rows] + np.float32(question.weight) * cosines
        all_scores.append(after)
    shrink = first[0].score / max(
        *(float(part_scores.max()) for part_scores in all_scores if len(part_scores)), MIN_SCORE
    )
    for part_scores in all_scores:
        part_scores[part_scores > 0] *= np.float32(shrink)
    return all_scores


def _top(scores: Floats, k: int, min_score: float) -> NDArray[np.intp]:
    """The rows of the ``k`` largest scores, in no order."""
    rows = np.flatnonzero(scores >= min_score)
    return rows if len(rows) <= k else rows[np.argpartition(scores[rows], -k)[-k:]]


def _best(parts: Sequence[IndexPart], scores: Sequence[Floats], k: int, min_score: float) -> list[Hit]:
    best = [
        Hit(part, int(row), float(part_scores[row]))
        for part, part_scores in zip(parts, scores, strict=True)
        for row in _top(part_scores, k, min_score)
    ]
    best.sort(key=lambda hit: -hit.score)
    return best[:k]


def _move_towards(question: Question, best: Sequence[Hit]) -> Vectors:
    """The question's vector moved towards the best passages, weighted by their scores; of length 1."""
    centre = sum(hit.score * hit.part.vectors[hit.row] for hit in best) / sum(hit.score for hit in best)
    moved = question.vector + np.float32(question.feedback) * centre
    unit: Vectors = (moved / max(float(np.linalg.norm(moved)), 1e-9)).astype(np.float32)
    return unit


def bm25(parts: Sequence[IndexPart], terms: Sequence[int]) -> list[Floats]:
    """BM25 of all rows of each part as a share of the most that these terms can give, 0 to 1."""
    rows = sum(part.size for part in parts)
    average = sum(float(part.lengths.sum()) for part in parts) / max(rows, 1)
    postings_by_part = [[part.postings(term) for term in terms] for part in parts]
    idf = [
        math.log(1.0 + (rows - frequency + 0.5) / (frequency + 0.5))
        for frequency in (
            sum(len(postings[number][0]) for postings in postings_by_part) for number in range(len(terms))
        )
    ]
    max_score = sum(idf) * (K1 + 1.0)
    return [
        _bm25(part, postings, [weight / max_score for weight in idf], average)
        for part, postings in zip(parts, postings_by_part, strict=True)
    ]


def _bm25(part: IndexPart, postings: Postings, weights: Sequence[float], average: float) -> Floats:
    scores = np.zeros(part.size, dtype=np.float32)
    saturation = (K1 * (1.0 - B) + (K1 * B / max(average, 1e-9)) * part.lengths).astype(np.float32)
    for (rows, counts), weight in zip(postings, weights, strict=True):
        frequencies = counts.astype(np.float32)
        scores[rows] += np.float32(weight * (K1 + 1.0)) * frequencies / (frequencies + saturation[rows])
    return scores
