"""How far free-text answers go: what counts as the author's length, and as the second half of an answer."""

from __future__ import annotations

from typing import Final

import pytest

from tests.unit.trainer.evaluate.worlds import QUICK, subject
from trainer.evaluate.answer_length import AnswerLength, length_of

COUNT: Final = 40
GREETING: Final = "thank you for writing to us we are sorry to hear this and here is what we can do today"


def about(number: int, half: int) -> list[str]:
    return [subject(100 * number + 10 * half + place) for place in range(8)]


def author(number: int) -> str:
    return " ".join([*about(number, 0), *about(number, 1)])


def measured(answers: list[str], references: list[str] | None = None) -> AnswerLength:
    length = length_of(answers, references or [author(number) for number in range(COUNT)], None, QUICK)
    assert length is not None
    return length


def test_the_author_s_own_answers_are_whole() -> None:
    length = measured([author(number) for number in range(COUNT)])
    assert length.second_half is not None
    assert [share.estimate for share in (length.words, length.unrepeated, length.second_half)] == [1, 1, 1]
    assert length.state(enough=True) == "kept"
    assert length.sentence("kept").endswith("at least 50% are needed).")


@pytest.mark.parametrize("times", [1, 3])
def test_repetition_adds_no_length(times: int) -> None:
    length = measured([" ".join(about(number, 0) * times) for number in range(COUNT)])
    assert length.words.estimate == pytest.approx(times / 2)
    assert length.unrepeated.estimate == pytest.approx(0.5 if times == 1 else 9 / 16)
    assert (length.state(enough=True), length.state(enough=False)) == ("broken", "open")
    assert ("filled up" in length.sentence("broken")) == (times > 1)


def test_other_words_do_not_stand_for_the_second_half() -> None:
    length = measured([" ".join([*about(number, 0), *about(COUNT + number, 0)]) for number in range(COUNT)])
    assert (length.words.state, length.unrepeated.state) == ("kept", "kept")
    assert length.second_half is not None
    assert (length.second_half.estimate, length.second_half.state) == (0, "broken")
    assert length.state(enough=True) == "broken"


def test_a_greeting_that_all_answers_have_does_not_make_the_rest_look_cut() -> None:
    """Half of the author's words are one greeting, which the candidate has learned; the rest it words otherwise."""
    references = [f"{GREETING} {author(number)}" for number in range(COUNT)]
    answers = [
        " ".join([GREETING, *about(number, 0)[::3], *about(number, 1)[::3], *about(COUNT + number, 0)])
        for number in range(COUNT)
    ]
    length = measured(answers, references)
    assert length.second_half is not None
    assert length.second_half.estimate == pytest.approx(1, abs=0.1)
    assert length.state(enough=True) == "kept"


def test_answers_in_another_order_are_whole() -> None:
    length = measured([" ".join([*about(number, 1), *about(number, 0)]) for number in range(COUNT)])
    assert length.state(enough=True) == "kept"


@pytest.mark.parametrize("reference", ["yes", "yes and no", "明白了"])
def test_without_words_that_tell_the_halves_apart_the_length_alone_counts(reference: str) -> None:
    length = measured([reference] * COUNT, [reference] * COUNT)
    assert length.second_half is None
    assert length.words.estimate == 1


def test_without_words_there_is_no_length() -> None:
    assert length_of(["!"] * COUNT, ["?"] * COUNT, None, QUICK) is None
