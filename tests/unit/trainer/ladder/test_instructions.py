"""Instructions made from the data: what an engineer would write after reading it."""

from __future__ import annotations

import json

from trainer.data.format import Example, Message
from trainer.ladder.instructions import MAX_CANDIDATES, candidates, describe

SIGN_OFF = "\n— the bench"


def example(line: int, question: str, answer: str) -> Example:
    return Example(line, (Message("user", question, trained=False), Message("assistant", answer, trained=True)))


def test_a_closed_set_of_answers_is_told() -> None:
    examples = [example(line, f"question {line}", ("card_lost", "top_up")[line % 2]) for line in range(20)]
    made = candidates(examples, (), ("card_lost", "top_up"), None, quotable=examples)
    assert all("- card_lost\n- top_up" in text for text in made)


def test_the_clients_own_instructions_and_the_datas_come_first() -> None:
    examples = [example(line, f"question {line}", f"Answer number {line} is a sentence.") for line in range(20)]
    made = candidates(examples, ("Be brief.",), (), "You are the shop.", quotable=examples)
    assert made[:2] == ("Be brief.", "You are the shop.")
    assert len(made) <= MAX_CANDIDATES
    assert all(text.startswith("You are the shop.") for text in made[2:])


def test_only_answers_that_everyone_may_see_are_quoted() -> None:
    examples = [example(line, f"question {line}", f"Answer number {line} is a sentence.") for line in range(20)]
    some = "\n".join(candidates(examples, (), (), None, quotable=examples[:2]))
    assert some.count("Answer number 0 ") == 1
    assert not any(f"Answer number {line} " in some for line in range(2, 20))
    assert "This is how answers sound" not in "".join(candidates(examples, (), (), None, quotable=()))


def test_json_answers_come_with_their_schema() -> None:
    examples = [example(line, f"question {line}", json.dumps({"city": "Rome", "rooms": line})) for line in range(20)]
    (made,) = candidates(examples, (), (), None, quotable=examples)
    assert '"required":["city","rooms"]' in made


def test_a_common_ending_the_length_and_what_is_never_used_are_described() -> None:
    texts = [
        f"A pan of kind {number} that wobbles is no use to anyone. Send us a picture.{SIGN_OFF}" for number in range(20)
    ]
    said = describe(texts)
    assert said.startswith("Write about 19 words")
    assert "End with:" in said
    assert "the bench" in said
    assert "Never use an exclamation mark." in said
    assert "Begin with: A pan of kind" in said


def test_answers_without_anything_in_common_are_not_given_an_ending() -> None:
    texts = [f"{word * 3} is what we say!" + word for word in ("alpha", "beta", "gamma", "delta")]
    said = describe(texts)
    assert "End with" not in said
    assert "exclamation" not in said
