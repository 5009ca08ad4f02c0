from __future__ import annotations

import pytest

from trainer.errors import EvaluationInvalid
from trainer.evaluate.controls import controls
from trainer.evaluate.metrics.match import Contains, ExactMatch
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


def test_for_free_text_the_constant_is_the_answer_most_like_the_others() -> None:
    references = ["thank you for your letter", "thank you for your call", "thank you for your visit", "no"]
    constant, permuted = controls(references, RougeL())
    assert constant.answer == "thank you for your letter"
    # its own example counts as any other would: 0.8, 0.8 and 0 against the others
    assert constant.mean == pytest.approx((1.6 / 3 + 0.8 + 0.8 + 0) / 4)
    assert permuted.mean > 0


def test_for_free_text_the_constant_is_one_that_was_taught_and_no_answer_of_the_held_out() -> None:
    taught = ["good day to you", "good day", "good day to all"]
    constant, _ = controls(["good day sir", "good day madam"], RougeL(), taught=taught)
    assert constant.answer == "good day to you"
    assert constant.scores == (pytest.approx(4 / 7), pytest.approx(4 / 7))


def test_a_constant_does_not_profit_from_the_example_that_it_answers() -> None:
    alone, _ = controls(["a b c", "d e f", "g h i"], RougeL())
    assert alone.mean == 0
    twice, _ = controls(["a b c", "a b c", "g h i"], RougeL())
    assert twice.mean == pytest.approx(2 / 3)


def test_for_free_text_the_most_frequent_answer_is_tried_too() -> None:
    """A macro unlike all others, which more than half of the questions get."""
    macro = "please write to our support and tell them the number on your letter"
    orders = [f"order {at} has left on day {at} by ship {at}" for at in range(40)]
    for taught in ([macro, *orders], []):
        constant, _ = controls([macro] * 60 + orders, RougeL(), taught=taught)
        assert constant.answer == macro
        assert constant.mean >= 0.6


def test_what_was_taught_is_tried_as_a_constant_too() -> None:
    constant, _ = controls(["a", "b", "c"], ExactMatch(), taught=["c"] * 3)
    assert constant.mean == pytest.approx(1 / 3)
    only_taught, _ = controls(["yes, a", "yes, b"], Contains(), taught=["yes, a and yes, b"])
    assert only_taught.mean == 1


def test_without_references_there_is_no_control() -> None:
    with pytest.raises(EvaluationInvalid):
        controls([], ExactMatch())
