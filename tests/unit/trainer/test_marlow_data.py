"""The example's 1,000 replies are varied: no near-duplicates by the data report's rule, and nothing held out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import pytest

from trainer.data.findings import duplicates, overlap
from trainer.data.format import Example, read_chat
from trainer.data.similar import groups
from trainer.samples import MARLOW

SIGN_OFF: Final = "\n— the bench at Marlow & Thrush"
PASSAGES: Final = "Facts to answer from, with their sources."
SIMILAR: Final = 0.5
"""Far below the 0.8 from which the data report calls two texts near-duplicates: these are meant to be varied."""
SHARED_RUN: Final = 8
"""Words in a row that no two replies share, without the sign-off."""
OPENING_SHARE: Final = 0.01
"""Share of the replies that may begin with the same two words."""


@pytest.fixture(scope="module")
def training() -> tuple[Example, ...]:
    return read_chat(MARLOW / "training.jsonl").examples


@pytest.fixture(scope="module")
def held_out() -> tuple[Example, ...]:
    return read_chat(MARLOW / "heldout.jsonl").examples


def replies(examples: Iterable[Example]) -> list[str]:
    """Every reply of every turn, without the sign-off that all of them have."""
    return [
        message.text.removesuffix(SIGN_OFF)
        for example in examples
        for message in example.messages
        if message.role == "assistant"
    ]


def tickets(examples: Iterable[Example]) -> list[str]:
    """What customers wrote in every turn, without the passages that were retrieved for it."""
    texts = (message.text for example in examples for message in example.messages if message.role == "user")
    return [text.rpartition(">>\n\n")[2] if text.startswith(PASSAGES) else text for text in texts]


def runs(text: str) -> Iterator[str]:
    """Each SHARED_RUN words in a row."""
    words = re.findall(r"[\w'’-]+", text.lower())
    return (" ".join(words[start : start + SHARED_RUN]) for start in range(len(words) - SHARED_RUN + 1))


def test_there_are_1000_examples_and_150_tickets_of_other_themes(
    training: tuple[Example, ...], held_out: tuple[Example, ...]
) -> None:
    assert (len(training), len(held_out)) == (1000, 150)
    assert all(reply.strip() for reply in replies(training))


def test_the_data_report_finds_no_near_duplicates_and_no_held_out_ticket(
    training: tuple[Example, ...], held_out: tuple[Example, ...]
) -> None:
    assert duplicates(training) == []
    assert overlap(training, held_out) == ([], frozenset())


def test_no_two_replies_and_no_two_tickets_of_any_turn_are_even_half_alike(
    training: tuple[Example, ...], held_out: tuple[Example, ...]
) -> None:
    for texts in (replies([*training, *held_out]), tickets([*training, *held_out])):
        alike = [[texts[index] for index in group] for group in groups(texts, SIMILAR) if len(group) > 1]
        assert alike == []


def test_no_reply_repeats_eight_words_of_another(training: tuple[Example, ...], held_out: tuple[Example, ...]) -> None:
    trained = replies(training)
    having: dict[str, set[int]] = defaultdict(set)
    for number, reply in enumerate([*trained, *replies(held_out)]):
        for run in runs(reply):
            having[run].add(number)
    # held-out replies may share some with each other: nothing is trained on them
    repeated = {run for run, numbers in having.items() if len(numbers) > 1 and min(numbers) < len(trained)}
    assert repeated == set()


def test_replies_begin_in_many_ways(training: tuple[Example, ...]) -> None:
    texts = replies(training)
    openings = Counter(" ".join(text.lower().split()[:2]) for text in texts)
    assert openings.most_common(1)[0][1] <= OPENING_SHARE * len(texts)
