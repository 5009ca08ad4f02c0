"""A few kinds of questions that are asked again and again with other numbers are few observations."""

from __future__ import annotations

import pytest

from trainer.data.similar import NearDuplicates, groups

KINDS = [
    "Where is the parcel that I ordered two weeks ago and that your shop promised to deliver to my office by Monday",
    "How do I return a broken lamp whose original box was thrown away by my flat mate on the day of its delivery",
    "Why was my credit card charged twice for one single order although the page said that the payment had failed",
    "Can I still change the delivery address after the dispatch because I am moving to another city this month",
    "When will the blue kettle with the wooden handle be back in stock since I have waited for over a month",
    "Is there a student discount on the garden furniture that was shown in the catalogue of last Saturday",
    "What do I do when the voucher code from your newsletter is refused at the checkout although it is valid",
    "My account is locked after three wrong passwords so how do I get in again without losing my loyalty points",
    "Do you ship to the north of Norway and what does it cost for a parcel of about twenty kilograms with customs",
    "How long is the guarantee on a sofa bed that was bought in the winter sale and whose frame has broken",
]
INSTRUCTIONS = [
    "You are given a question of a customer of our shop and have to name its department, in one word",
    "Read the following message with care and say in which of our departments it should be handled",
    "Classify this request as one of our departments and say nothing else, however polite it may be",
    "Here is a message of somebody who has bought something of us; which department should answer it",
]


def asked(kinds: int, count: int, first: int) -> list[str]:
    return [f"{KINDS[at % kinds]}? My order number is {first + 7_919_317 * at}." for at in range(count)]


@pytest.mark.parametrize("kinds", [2, 5, 7, 8, 10])
def test_other_order_numbers_make_no_other_questions(kinds: int) -> None:
    texts = asked(kinds, 80, 1_204_118_327)
    assert len(groups(texts)) == kinds
    held_out = asked(kinds, 60, 4_310_900_411)
    assert all(match.same or match.similar for match in NearDuplicates(texts).of(held_out))


def test_instructions_do_not_make_questions_alike() -> None:
    questions = [f"{opening[:24]} {ending[-20:]}" for opening in KINDS[:6] for ending in KINDS[5:]]
    for instructions in (INSTRUCTIONS[:1], INSTRUCTIONS):
        texts = [f"{instructions[at % len(instructions)]}:\n{question}" for at, question in enumerate(questions)]
        assert len(groups(texts)) == len(questions)


def test_sums_under_one_instruction_stay_different() -> None:
    texts = [
        f"Solve this and show every step of your work, as in school.\nWhat is {at * 37} + {at * 91}?"
        for at in range(1, 61)
    ]
    assert len(groups(texts)) > 50
