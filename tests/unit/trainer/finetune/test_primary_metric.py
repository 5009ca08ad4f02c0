"""By what a job is judged: what the base is told, and how long an answer may become."""

from __future__ import annotations

import re

import pytest

from trainer.data.format import Example, Message
from trainer.data.render import TokenSequence
from trainer.evaluate.arms import (
    ANSWER_FORM_TOKENS,
    MAX_ANSWER_TOKENS,
    MIN_ANSWER_TOKENS,
    TEMPLATE_TOKENS,
    THINKING_TOKENS,
    answer_list,
    max_answer_tokens,
)
from trainer.evaluate.metrics.match import ExactMatch
from trainer.evaluate.reading import form_of, read_answer
from trainer.finetune.primary_metric import choose
from trainer.finetune.spec import EvaluationOptions, PrimaryMetric

INTENTS = ("card lost", "card late", "top up")
TRAINED = 3
LIST = len(answer_list(sorted(INTENTS)).split())


def examples() -> list[Example]:
    return [
        Example(
            messages=(Message("user", f"question {at}?", False), Message("assistant", INTENTS[at % 3], True)),
            line=at + 1,
        )
        for at in range(36)
    ]


def sequence(tokens: int, trained: int = TRAINED) -> TokenSequence:
    return TokenSequence(tokens=tuple(range(tokens)), trained=(False,) * (tokens - trained) + (True,) * trained, line=1)


def chosen(context: int, *, longest: int = 20, held_out: int = 20) -> PrimaryMetric:
    return choose(
        EvaluationOptions(),
        examples(),
        [sequence(9), sequence(longest)],
        held_out=[sequence(held_out)],
        count=lambda text: len(text.split()),
        context=context,
    )


@pytest.mark.parametrize(("longest", "held_out"), [(60, 20), (20, 60)])
def test_the_base_is_told_the_answers_where_the_longest_question_has_room_beside_them(
    longest: int, held_out: int
) -> None:
    enough = LIST + 60 + TRAINED + ANSWER_FORM_TOKENS + TEMPLATE_TOKENS
    told = chosen(enough, longest=longest, held_out=held_out)
    assert (told.name, told.answers) == ("exact_match", tuple(sorted(INTENTS)))
    assert "not told" not in told.why
    untold = chosen(enough - 1, longest=longest, held_out=held_out)
    assert (untold.name, untold.answers) == ("exact_match", ())
    assert untold.why == (
        f"{told.why}; the list of possible answers does not fit into the context with the longest question, so the "
        "base is not given it"
    )


@pytest.mark.parametrize(
    ("longest", "context", "bound"),
    [
        (1, 8192, MIN_ANSWER_TOKENS),
        (40, 8192, 80),
        (4000, 8192, MAX_ANSWER_TOKENS),
        (400, 512, 512 - ANSWER_FORM_TOKENS),
    ],
)
def test_an_answer_may_become_twice_the_longest_with_room_for_its_form_and_no_longer_than_the_context(
    longest: int, context: int, bound: int
) -> None:
    assert max_answer_tokens(longest, context) == bound + ANSWER_FORM_TOKENS
    with_thinking = min(bound + ANSWER_FORM_TOKENS + THINKING_TOKENS, context)
    assert max_answer_tokens(longest, context, thinking=True) == with_thinking


def test_an_answer_that_must_be_the_reference_gets_its_length_and_the_same_room_for_its_form() -> None:
    room = ANSWER_FORM_TOKENS
    assert max_answer_tokens(18, 8192, metric="exact_match") == 18 + room
    assert max_answer_tokens(18, 8192, metric="exact_match", thinking=True) == 18 + room + THINKING_TOKENS
    assert max_answer_tokens(400, 404, metric="exact_match") == 404
    assert max_answer_tokens(18, 8192, metric="contains") == max_answer_tokens(18, 8192)


def test_a_job_judges_exact_answers_under_the_same_limit_as_an_evaluation() -> None:
    assert chosen(8192).max_tokens == TRAINED + ANSWER_FORM_TOKENS


@pytest.mark.parametrize("ending", ["Category: card_late", "The answer is card late."])
def test_a_base_that_gives_a_short_reason_first_is_not_cut_before_its_answer(ending: str) -> None:
    answer = f"The customer asks why the new card has not arrived by post.\n\n{ending}"
    reference = "card_late" if "_" in ending else "card late"
    exact = ExactMatch()
    assert exact.score(read_answer(answer, reference, form_of(exact)), reference) == 1
    words_and_marks, most = re.compile(r"\w+|[^\w\s]"), max_answer_tokens(1, 8192, metric=exact.name)
    assert len(words_and_marks.findall(answer)) <= most
