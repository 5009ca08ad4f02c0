"""Terms: what of a text BM25 counts."""

from __future__ import annotations

import numpy as np

from service.knowledge.terms import HEADING_WEIGHT, MAX_COUNT, Analyzer, words


def test_words_are_folded_and_stemmed() -> None:
    analyzer = Analyzer()
    assert analyzer.terms("Returned returns, RETURNING!") == analyzer.terms("return return return")
    assert analyzer.terms("Café naïve") == analyzer.terms("cafe naive")
    assert analyzer.terms("order TW-1042") == analyzer.terms("ORDER tw 1042")


def test_stop_words_are_no_terms() -> None:
    assert Analyzer().terms("what is the of and") == []


def test_scripts_without_spaces_are_counted_by_character() -> None:
    assert words("返品は30日以内") == ["返", "品", "は", "30", "日", "以", "内"]


def test_two_analyzers_give_the_same_numbers() -> None:
    # the embedder counts documents and the gateway questions, each with one of its own
    assert Analyzer().terms("boundary layer") == Analyzer().terms("boundary layers")


def test_a_bag_is_ascending_and_counts_a_heading_more() -> None:
    analyzer = Analyzer()
    terms, counts = analyzer.bag("Returns", "boots and boots")
    assert list(terms) == sorted(terms)
    by_term = dict(zip(terms.tolist(), counts.tolist(), strict=True))
    assert by_term == {analyzer.terms("return")[0]: HEADING_WEIGHT, analyzer.terms("boot")[0]: 2}
    assert terms.dtype == np.uint64


def test_a_count_never_runs_over() -> None:
    _, counts = Analyzer().bag("", "boot " * (MAX_COUNT + 10))
    assert counts.tolist() == [MAX_COUNT]
