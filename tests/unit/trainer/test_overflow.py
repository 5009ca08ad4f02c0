"""`overflow: truncate`: the oldest turns go first, then the end of the last answer, whose ending is not trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.trainer.test_render import END, assistant, one, renderer, spans, system, user
from trainer.data.format import Example, Message
from trainer.data.render import MIN_CUT_TOKENS, TokenSequence
from trainer.data.rendered_part import render_part, too_long

LONG_ANSWER = assistant("word " * 200)
TURNS = (system("Be brief."), user("first"), assistant("one"), user("second"), assistant("two"), user("third"))
CONVERSATION = Example(1, (*TURNS, assistant("three")))


def length(*messages: Message) -> int:
    return len(one(renderer(), Example(1, messages)).tokens)


def fitted(example: Example, max_length: int, *, cut_answer: bool = True) -> tuple[Example, TokenSequence, bool] | None:
    shortened = renderer(max_length=max_length).shorten(example, cut_answer=cut_answer)
    if shortened is None:
        return None
    (sequence,) = shortened.sequences
    return shortened.example, sequence, shortened.cut


def test_as_few_of_the_oldest_turns_go_as_are_too_many_and_the_system_message_stays() -> None:
    without_first = (*TURNS[:1], *TURNS[3:], assistant("three"))
    found = fitted(CONVERSATION, length(*without_first))
    assert found is not None
    example, sequence, cut = found
    assert (example.messages, cut) == (without_first, False)
    assert spans(sequence) == spans(one(renderer(), Example(1, without_first)))


def test_if_even_the_last_question_is_too_long_the_answers_end_goes_and_the_ending_token_is_not_trained() -> None:
    example = Example(1, (user("hi"), LONG_ANSWER))
    whole = one(renderer(), example)
    found = fitted(example, len(whole.tokens) - 50)
    assert found is not None
    _, sequence, cut = found
    assert cut
    assert sequence.tokens == whole.tokens[:-50]
    assert END in [token for token, trained in zip(whole.tokens, whole.trained, strict=True) if trained]
    assert END not in [token for token, trained in zip(sequence.tokens, sequence.trained, strict=True) if trained]


@pytest.mark.parametrize("cut_answer", [True, False])
def test_what_would_leave_too_little_of_an_answer_does_not_fit(cut_answer: bool) -> None:
    example = Example(1, (user("hi"), LONG_ANSWER))
    first = one(renderer(), example).first_trained
    assert fitted(example, first + MIN_CUT_TOKENS - 1, cut_answer=cut_answer) is None
    assert (fitted(example, first + MIN_CUT_TOKENS, cut_answer=cut_answer) is not None) == cut_answer


def test_an_answer_that_is_not_trained_is_not_cut() -> None:
    example = Example(1, (user("hi"), assistant("Aye"), user("and"), replace(LONG_ANSWER, trained=False)))
    assert fitted(example, 100) is None


def test_a_part_is_truncated_or_dropped_and_the_findings_name_the_lines() -> None:
    short = Example(1, (user("hi"), assistant("Aye")))
    long = Example(2, (user("hi"), LONG_ANSWER))
    hopeless = Example(3, (user("word " * 200), assistant("Aye")))
    limited = renderer(max_length=120)
    part = render_part([short, long, hopeless], limited, "truncate", lambda: None)
    assert [example.line for example in part.examples] == [1, 2]
    assert (part.shortened, part.cut, list(part.long)) == ((2,), (2,), [3])
    assert {finding.code: finding.lines for finding in too_long(limited, part, "truncate", "training")} == {
        "truncated": (2,),
        "dropped_too_long": (3,),
    }
    held_out = render_part([short, long], limited, "truncate", lambda: None, held_out=True)
    assert (held_out.cut, list(held_out.long)) == ((), [2])
