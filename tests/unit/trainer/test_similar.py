from __future__ import annotations

import random

import pytest

from trainer.data.format import Example, Message
from trainer.data.personal import Finder
from trainer.data.similar import groups, normalise
from trainer.data.split import FEWEST, question, split

SENTENCE = "I ordered a brass lantern last week and the parcel has not come to my door yet, where is it number {}?"


def test_texts_that_differ_in_a_word_are_one_group_and_others_are_not() -> None:
    texts = [SENTENCE.format(1), "Do you sell rope?", SENTENCE.format(2), "do  you sell ROPE?", "Is the shop open?"]
    assert groups(texts) == [[0, 2], [1, 3], [4]]


def test_a_chain_of_similar_texts_is_one_group() -> None:
    words = [f"word{number}" for number in range(60)]
    chain = [" ".join(words[start : start + 50]) for start in range(0, 11, 2)]
    assert groups(chain) == [list(range(len(chain)))]


def test_every_index_stands_in_one_group() -> None:
    rng = random.Random(1)
    texts = [SENTENCE.format(rng.randrange(5)) if rng.random() < 0.5 else str(rng.random()) for _ in range(300)]
    found = groups(texts)
    assert sorted(index for group in found for index in group) == list(range(300))
    assert groups([]) == []


def test_width_and_case_make_no_difference() -> None:
    assert normalise("ＡＢＣ  d\n") == "abc d"


def example(line: int, text: str, answer: str = "a") -> Example:
    return Example(line, (Message("user", text, trained=False), Message("assistant", answer, trained=True)))


def test_similar_questions_never_straddle_the_border() -> None:
    rng = random.Random(2)
    topics = [" ".join(str(rng.randrange(10_000)) for _ in range(20)) for _ in range(40)]
    examples = [example(line, f"{topics[line % 40]} number {line % 7}") for line in range(200)]
    rng.shuffle(examples)
    parts = split(examples, seed=5, share=0.2)
    assert 0 < len(parts.held_out) <= 40
    assert sorted(parts.training + parts.held_out) == list(range(200))
    held = set(parts.held_out)
    for group in groups([question(one) for one in examples]):
        assert len({index in held for index in group}) == 1
    assert split(examples, seed=5, share=0.2) == parts
    assert split(examples, seed=6, share=0.2) != parts


def test_nothing_is_held_out_of_a_handful() -> None:
    few = [example(line, str(line) * 20) for line in range(2 * FEWEST - 1)]
    assert split(few, seed=0).held_out == ()
    assert len(split([*few, example(99, "one more")], seed=0).held_out) == FEWEST


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to bob@corp.io", {"email"}),
        ("write to bob@shop.example or a@example.com", set()),
        ("call +49 170 1234567", {"telephone number"}),
        ("my card 4111 1111 1111 1111", {"card number"}),
        ("order 4111 1111 1111 1112", set()),
        ("to DE89 3704 0044 0532 0130 00", {"bank account"}),
        ("to DE88 3704 0044 0532 0130 00", set()),
        ("AKIAIOSFODNN7EXAMPLE", {"AWS Access Key"}),
        ("first\n-----BEGIN RSA PRIVATE KEY-----", {"Private Key"}),
        ("The password of the day is a fine word.", set()),
    ],
)
def test_personal_data_and_secrets(text: str, kinds: set[str]) -> None:
    assert Finder().find(text) == kinds
