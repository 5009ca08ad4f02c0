"""Answers that are similar to the author's without answering: under `similarity`, on the sample voice's own data."""

from __future__ import annotations

import random
from typing import Final

import pytest

from tests.unit.trainer.evaluate.free_text import (
    HELD_OUT,
    PARTING,
    TAUGHT,
    TRAINED_ON,
    Likely,
    Say,
    first_half,
    honest,
    honest_in_meaning,
    states,
    verdict,
)
from trainer.evaluate.arms import ChatMessage, Question
from trainer.evaluate.control_arms import copied_question
from trainer.evaluate.metrics.similarity import Similarity

PARTING_WORDS: Final = "Send me the order number, matey, and I'll see what's left in the hold!"
TURNED: Final = {"i": "you", "my": "yer", "me": "you", "i'm": "you're", "i've": "you've", "we": "you", "you": "we"}


def turned_round(question: Question) -> str:
    """The question's words, said to the one who asked."""
    return " ".join(TURNED.get(word.lower(), word) for word in question.last_message.split())


@pytest.mark.parametrize(
    "say",
    [
        lambda question: f"Ahoy! {question.last_message} {PARTING_WORDS}",
        lambda question: f"{' '.join(first_half(honest_in_meaning(question)))} {question.last_message}",
    ],
    ids=["with parting words", "behind half an answer"],
)
async def test_the_question_within_an_answer_fails_although_it_is_similar(say: Say) -> None:
    decided = await verdict(say, Likely(*PARTING), metric="similarity")
    assert states(decided)["base"] == "kept", "by its meaning alone it would have passed"
    assert (decided.word, states(decided)["form"]) == ("fail", "broken")
    (repeated,) = [difference for difference in decided.against_form if difference.against == "question"]
    assert repeated.high < 0


async def test_the_question_turned_round_does_not_pass() -> None:
    decided = await verdict(
        lambda question: f"Ahoy! So {turned_round(question)} {PARTING_WORDS}", Likely(*PARTING), metric="similarity"
    )
    assert states(decided)["base"] == "kept"
    assert decided.word != "pass"
    assert states(decided)["form"] != "kept"


def with_its_subject(question: Question) -> Question:
    """Its question, behind a third of the words of its answer in no order."""
    subject = random.Random(question.id).sample(words := question.reference.split(), len(words) // 3)
    turn = ChatMessage(role="user", content=f"{question.last_message} {' '.join(subject)}")
    return question.model_copy(update={"turns": (*question.turns[:-1], turn)})


def fairly(question: Question) -> str:
    return honest(question, 0.4)


async def test_an_honest_adapter_passes_although_its_questions_are_as_similar_to_the_answers() -> None:
    """A question has the subject of its answer, and can be as similar to it as an answer that does not repeat it."""
    held_out, metric = [with_its_subject(question) for question in HELD_OUT], Similarity()
    similar = [metric.score(fairly(question), question.reference) for question in held_out]
    assert copied_question(held_out, metric).mean > sum(similar) / len(similar)
    decided = await verdict(fairly, Likely(*PARTING), metric="similarity", held_out=held_out)
    assert decided.word == "pass", states(decided)
    decided = await verdict(fairly, Likely(*PARTING), metric="similarity", held_out=held_out, trained_on=())
    assert decided.word != "pass", "without training examples nothing shows that they are more than looked up"


async def test_training_answers_looked_up_by_their_questions_do_not_pass() -> None:
    metric, asked = Similarity(), [question.last_message for question in TRAINED_ON]
    vectors = metric.vectors(asked)

    def look_up(question: Question) -> str:
        return TAUGHT[int((vectors @ metric.vectors([question.last_message])[0]).argmax())]

    decided = await verdict(look_up, Likely(*PARTING), metric="similarity")
    assert states(decided)["base"] == "kept", "they are more similar to the answers than the base's"
    assert decided.word != "pass"
    assert states(decided)["form"] != "kept"
