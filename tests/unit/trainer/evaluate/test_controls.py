from __future__ import annotations

import pytest

from trainer.errors import EvaluationInvalid
from trainer.evaluate.controls import controls
from trainer.evaluate.metrics.match import ExactMatch
from trainer.evaluate.metrics.overlap import RougeL


def test_under_exact_match_the_constant_is_the_most_frequent_answer() -> None:
    constant, _ = controls(["a"] * 5 + ["b"] * 3 + ["c"] * 2, ExactMatch())
    assert (constant.answer, constant.mean) == ("a", 0.5)
    assert constant.scores == (1.0,) * 5 + (0.0,) * 5


def test_answers_mixed_up_reach_what_their_frequencies_give() -> None:
    references = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    _, permuted = controls(references, ExactMatch())
    assert permuted.mean == pytest.approx(0.5**2 + 0.3**2 + 0.2**2, abs=0.03)
    assert permuted == controls(references, ExactMatch())[1]
    assert permuted != controls(references, ExactMatch(), seed=1)[1]


def test_for_free_text_the_constant_is_the_answer_that_scores_best_when_given_to_all() -> None:
    references = ["thank you for your letter", "thank you for your call", "thank you for your visit", "no"]
    constant, permuted = controls(references, RougeL())
    assert constant.answer != "no"
    assert constant.mean == pytest.approx((1 + 0.8 + 0.8 + 0) / 4)
    assert 0 < permuted.mean < constant.mean


def test_what_was_taught_is_tried_as_a_constant_too() -> None:
    constant, _ = controls(["good day sir", "good day madam"], RougeL(), taught=["good day"] * 3 + ["x"])
    assert constant.answer == "good day sir"  # two thirds and a whole one beat two times 0.8
    constant, _ = controls(["good day sir a", "good day madam b"], RougeL(), taught=["good day"])
    assert constant.answer == "good day sir a"
    constant, _ = controls(["a good day", "good day b", "c good day"], RougeL(), taught=["good day"])
    assert constant.answer == "good day"


def test_without_references_there_is_no_control() -> None:
    with pytest.raises(EvaluationInvalid):
        controls([], ExactMatch())
