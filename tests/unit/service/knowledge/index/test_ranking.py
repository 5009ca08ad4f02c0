"""Ranking: BM25 beside the formula written out, and parts that come and go without changing a score."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.knowledge.index.part import IndexPart, PlacedSegment, build, join
from service.knowledge.index.ranking import K1, B, Hit, Question, bm25, rank
from service.knowledge.terms import Analyzer
from tests.unit.service.knowledge.index.segments import segment, vector

TEXTS = ["boots boots laces", "parcel tuesday", "boots parcel harbour wind rope", "rope", "tide tide tide boots"]
ANALYZER = Analyzer()


def part(texts: list[str], document: int = 1) -> IndexPart:
    return build([PlacedSegment(segment(texts), document, document)])


def question(text: str, *, weight: float, k: int = 10, threshold: float = 0.0, feedback: float = 0.0) -> Question:
    return Question(tuple(dict.fromkeys(ANALYZER.terms(text))), vector(text), weight, k, threshold, feedback)


def written_out(texts: list[str], asked: str) -> list[float]:
    """Robertson and Zaragoza's BM25 with Lucene's idf, over what the question could reach at most."""
    bags = [Counter(ANALYZER.terms(text)) for text in texts]
    average = sum(bag.total() for bag in bags) / len(bags)
    scores, most = [0.0] * len(texts), 0.0
    for term in dict.fromkeys(ANALYZER.terms(asked)):
        frequency = sum(term in bag for bag in bags)
        idf = math.log(1 + (len(bags) - frequency + 0.5) / (frequency + 0.5))
        most += idf * (K1 + 1)
        for number, bag in enumerate(bags):
            long = 1 - B + B * bag.total() / average
            scores[number] += idf * bag[term] * (K1 + 1) / (bag[term] + K1 * long)
    return [score / most for score in scores]


@pytest.mark.parametrize("asked", ["boots", "boots parcel", "tide rope unheard", "laces laces boots"])
def test_bm25_is_the_formula(asked: str) -> None:
    terms = tuple(dict.fromkeys(ANALYZER.terms(asked)))
    (found,) = bm25([part(TEXTS)], terms)
    assert found == pytest.approx(written_out(TEXTS, asked), rel=1e-5)


WORDS = st.sampled_from(["boot", "rope", "tide", "wind", "sail"])


@given(st.lists(st.lists(WORDS, min_size=1), min_size=2, max_size=8))
@settings(max_examples=60)
def test_several_parts_score_as_one(passages: list[list[str]]) -> None:
    texts = [" ".join(words) for words in passages]
    terms = ANALYZER.terms("boot tide")
    whole = bm25([part(texts)], terms)[0]
    half = len(texts) // 2
    first, second = part(texts[:half], 1), part(texts[half:], 2)
    assert np.concatenate(bm25([first, second], terms)) == pytest.approx(whole, rel=1e-5)
    joined = join([first, second])
    assert joined is not None
    assert bm25([joined], terms)[0] == pytest.approx(whole, rel=1e-5)
    assert np.array_equal(joined.vectors, part(texts).vectors)
    assert joined.documents.tolist() == [1] * half + [2] * (len(texts) - half)


def test_joining_leaves_out_what_is_dead() -> None:
    first, second = part(TEXTS[:2], 1), part(TEXTS[2:], 2)
    joined = join([first.without(1), second])
    assert joined is not None
    assert joined.documents.tolist() == [2, 2, 2]
    assert bm25([joined], ANALYZER.terms("rope"))[0] == pytest.approx(written_out(TEXTS[2:], "rope"), rel=1e-5)
    assert join([first.without(1)]) is None


def found(hits: list[Hit]) -> list[int]:
    return [hit.row for hit in hits]


def test_words_alone_meaning_alone_and_both() -> None:
    one = part(TEXTS)
    words = rank([one], question("tide boots", weight=0))
    meaning = rank([one], question("tide boots", weight=1))
    both = {hit.row: hit.score for hit in rank([one], question("tide boots", weight=0.4))}
    assert words[0].row == 4
    lexic, cosine = {h.row: h.score for h in words}, {h.row: h.score for h in meaning}
    assert both == pytest.approx({row: 0.6 * lexic[row] + 0.4 * cosine[row] for row in both}, abs=1e-6)
    assert all(0 <= score <= 1 for score in both.values())


def test_the_best_k_come_first_and_the_threshold_cuts() -> None:
    one = part(TEXTS)
    every = rank([one], question("boots parcel", weight=0.4))
    scores = [hit.score for hit in every]
    assert scores == sorted(scores, reverse=True)
    assert found(rank([one], question("boots parcel", weight=0.4, k=2))) == found(every)[:2]
    least = scores[1]
    assert [hit.row for hit in rank([one], question("boots parcel", weight=0.4, threshold=least - 1e-6))] == found(
        every
    )[:2]


def test_a_mask_comes_before_the_ranking() -> None:
    one = part(TEXTS)
    allowed = np.array([False, True, False, True, False])
    assert set(found(rank([one], question("boots", weight=0.4, k=2), [allowed]))) <= {1, 3}


def test_a_question_of_stop_words_alone_has_its_meaning() -> None:
    one = part(TEXTS)
    asked = Question((), vector("rope"), 0.4, 1, 0.0)
    assert found(rank([one], asked)) == [3]


def test_the_second_look_brings_up_what_is_like_the_best() -> None:
    # nothing of the question is in the last passage, but it is about what the best one is about
    texts = ["boots laces leather", "boots harbour wind", "leather laces"]
    one = part(texts)
    plain = rank([one], question("boots laces", weight=0.5))
    moved = rank([one], question("boots laces", weight=0.5, feedback=1.0))
    share = {hit.row: hit.score / plain[0].score for hit in plain}
    after = {hit.row: hit.score / moved[0].score for hit in moved}
    assert after[2] > share[2]
    assert moved[0].row == plain[0].row == 0
    assert moved[0].score == pytest.approx(plain[0].score), "what a score means does not change"


def test_the_second_look_changes_no_words_and_needs_something_to_look_at() -> None:
    one = part(TEXTS)
    assert rank([one], question("boots", weight=0, feedback=1.0)) == rank([one], question("boots", weight=0))
    nobody = np.zeros(len(TEXTS), dtype=np.bool_)
    assert rank([one], question("boots", weight=0.5, feedback=1.0), [nobody]) == []
