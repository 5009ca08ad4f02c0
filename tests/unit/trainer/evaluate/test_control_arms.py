from __future__ import annotations

import pytest

from tests.unit.trainer.evaluate.worlds import questions
from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import ChatMessage, Question
from trainer.evaluate.control_arms import (
    constant_and_permuted,
    copied_question,
    derangements,
    reassigned_answers,
    reassigned_beyond_question,
)
from trainer.evaluate.metrics.match import Contains, ExactMatch
from trainer.evaluate.metrics.overlap import RougeL


def test_under_exact_match_the_constant_is_the_most_frequent_answer() -> None:
    constant, _ = constant_and_permuted(["a"] * 5 + ["b"] * 3 + ["c"] * 2, ExactMatch())
    assert (constant.answer, constant.mean) == ("a", 0.5)
    assert constant.scores == (1.0,) * 5 + (0.0,) * 5


def test_answers_mixed_up_reach_what_their_frequencies_give() -> None:
    references = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    _, permuted = constant_and_permuted(references, ExactMatch())
    assert permuted.mean == pytest.approx(0.5**2 + 0.3**2 + 0.2**2, abs=0.03)
    assert permuted == constant_and_permuted(references, ExactMatch())[1]
    assert permuted != constant_and_permuted(references, ExactMatch(), seed=1)[1]


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_no_question_is_ever_given_its_own_answer(count: int) -> None:
    ways = derangements(count, 20, seed=3)
    assert len(ways) == min(20, count - 1)
    for whose in ways:
        assert sorted(whose) == list(range(count))
        assert not any(other == place for place, other in enumerate(whose))
    # and over all ways no place gets the same one twice
    assert all(len({int(whose[place]) for whose in ways}) == len(ways) for place in range(count))
    assert derangements(1, 20, seed=3) == []


def test_a_derangement_never_keeps_an_own_answer() -> None:
    """References that have nothing in common: of a plain permutation one in four would be right by chance."""
    references = ["a b", "c d", "e f", "g h"]
    assert constant_and_permuted(references, RougeL())[1].scores == (0.0,) * 4


def test_a_candidates_own_answers_are_given_to_other_questions() -> None:
    references = [f"order {at} is in harbour {at}" for at in range(30)]
    own = reassigned_answers(references, references, RougeL())
    assert own.kind == "reassigned"
    assert own.mean == pytest.approx(4 / 6)
    salad = reassigned_answers(["order is in harbour"] * 30, references, RougeL())
    assert salad.scores == pytest.approx([RougeL().score("order is in harbour", each) for each in references])


def asking(question: str, reference: str, at: int) -> Question:
    turns = (ChatMessage(role="system", content="harbour"), ChatMessage(role="user", content=question))
    return Question(id=str(at), turns=turns, reference=reference)


def test_beyond_the_questions_words_one_text_with_a_question_is_the_same_everywhere() -> None:
    held_out = [asking(f"where is parcel {at}?", f"parcel {at} lies in harbour {at * 7}", at) for at in range(30)]
    copies = [f"in harbour where it lies parcel {at}" for at in range(30)]
    found = reassigned_beyond_question(copies, held_out, RougeL())
    assert found is not None
    assert found.candidate == found.scores
    assert found.mean > 0
    honest = reassigned_beyond_question([each.reference for each in held_out], held_out, RougeL())
    assert honest is not None
    assert honest.candidate == (1.0,) * 30
    assert honest.mean < 1


def test_answers_that_are_quoted_from_the_question_are_not_judged_by_what_is_beyond_it() -> None:
    held_out = [asking(f"find the name: Smith{at} wrote", f"Smith{at}", at) for at in range(5)]
    assert reassigned_beyond_question(["x"] * 5, held_out, RougeL()) is None
    assert reassigned_beyond_question(["x"], [asking("a", "b", 0)], RougeL()) is None


def test_the_question_is_an_answer_too() -> None:
    found = copied_question(questions(3), ExactMatch())
    assert (found.kind, found.scores) == ("question", (0.0, 0.0, 0.0))
    assert copied_question(questions(3), RougeL()).mean > 0  # "question 1?" has the 1 of "answer 1"


def test_for_free_text_the_constant_is_the_answer_most_like_the_others() -> None:
    references = ["thank you for your letter", "thank you for your call", "thank you for your visit", "no"]
    constant, permuted = constant_and_permuted(references, RougeL())
    assert constant.answer == "thank you for your letter"
    # its own example counts as any other would: 0.8, 0.8 and 0 against the others
    assert constant.mean == pytest.approx((1.6 / 3 + 0.8 + 0.8 + 0) / 4)
    assert permuted.mean > 0


def test_for_free_text_the_constant_is_one_that_was_taught_and_no_answer_of_the_held_out() -> None:
    taught = ["good day to you", "good day", "good day to all"]
    constant, _ = constant_and_permuted(["good day sir", "good day madam"], RougeL(), trained_answers=taught)
    assert constant.answer == "good day to you"
    assert constant.scores == (pytest.approx(4 / 7), pytest.approx(4 / 7))


def test_a_constant_does_not_profit_from_the_example_that_it_answers() -> None:
    alone, _ = constant_and_permuted(["a b c", "d e f", "g h i"], RougeL())
    assert alone.mean == 0
    twice, _ = constant_and_permuted(["a b c", "a b c", "g h i"], RougeL())
    assert twice.mean == pytest.approx(2 / 3)


def test_for_free_text_the_most_frequent_answer_is_tried_too() -> None:
    """A macro unlike all others, which more than half of the questions get."""
    macro = "please write to our support and tell them the number on your letter"
    orders = [f"order {at} has left on day {at} by ship {at}" for at in range(40)]
    for taught in ([macro, *orders], []):
        constant, _ = constant_and_permuted([macro] * 60 + orders, RougeL(), trained_answers=taught)
        assert constant.answer == macro
        assert constant.mean >= 0.6


def test_what_was_taught_is_tried_as_a_constant_too() -> None:
    constant, _ = constant_and_permuted(["a", "b", "c"], ExactMatch(), trained_answers=["c"] * 3)
    assert constant.mean == pytest.approx(1 / 3)
    only_taught, _ = constant_and_permuted(["yes, a", "yes, b"], Contains(), trained_answers=["yes, a and yes, b"])
    assert only_taught.mean == 1


def test_without_references_there_is_no_control() -> None:
    with pytest.raises(EvaluationInvalid):
        constant_and_permuted([], ExactMatch())
