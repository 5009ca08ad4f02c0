"""Nearly the same question with contradictory answers, and what only looks like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import trainer.samples
from trainer.data.findings import closed_answers
from trainer.data.format import Example, Message, read_chat
from trainer.data.paraphrases import near_contradictions
from trainer.data.report import Finding
from trainer.data.split import group_questions

LONG = "my parcel with the brass lanterns was left at the neighbour next door and it is damaged"


def examples(pairs: Sequence[tuple[str, str]], systems: Sequence[str | None] = ()) -> list[Example]:
    rows = []
    for line, (question, answer) in enumerate(pairs, 1):
        system = systems[line - 1] if systems else None
        before = () if system is None else (Message("system", system, False),)
        rows.append(Example(line, (*before, Message("user", question, False), Message("assistant", answer, True))))
    return rows


def check(
    pairs: Sequence[tuple[str, str]], *, closed: bool = False, systems: Sequence[str | None] = ()
) -> list[Finding]:
    rows = examples(pairs, systems)
    return near_contradictions(rows, group_questions(rows), closed=closed)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I return an item?", "how can I return the item, please"),
        ("Where is my order?", "Hi, where is the order?"),
        (f"What now: {LONG}?", f"What now: {LONG.replace('neighbour', 'neigbour')}?"),
    ],
)
@pytest.mark.parametrize(
    ("answers", "closed"),
    [
        (("You have 30 days to send it back to us.", "You have 14 days to send it back to us."), False),
        (("Yes, we take it back and refund you.", "No, we never take it back or refund you."), False),
        (("Send it to our shop in the harbour.", "Ask any shopkeeper near Bristol, matey."), False),
        (("returns", "delivery"), True),
    ],
)
def test_a_paraphrase_with_a_contradictory_answer_is_reported_with_its_row(
    first: str, second: str, answers: tuple[str, str], closed: bool
) -> None:
    others = [("Do you sell rope?", "other"), ("Is the shop open on Sunday?", "another")]
    (found,) = check([others[0], (first, answers[0]), others[1], (second, answers[1])], closed=closed)
    assert (found.code, found.severity, found.count, found.lines) == ("near_contradictions", "warning", 2, (2, 4))
    assert "lines 2 and 4" in found.message


@pytest.mark.parametrize(
    "pairs",
    [
        [("Where is order 17?", "It arrives on 3 May."), ("Where is the order 18?", "It arrives on 9 June.")],
        [("How do I return a hat?", "Within 30 days."), ("How do I return a coat?", "Within 14 days.")],
        [("Can I ship to Rome?", "Yes, for 3 pounds."), ("Can I ship from Rome?", "No, only for 9 pounds.")],
        [("Do you sell rope?", "Yes, of 3 kinds."), ("Do you not sell rope?", "No, none, but 9 nets.")],
        [
            ("How do I return an item?", "Send it back within 30 days, and we refund you."),
            ("How can I return an item?", "You can send it back to us within 30 days for a refund."),
        ],
        [
            *((f"My contact: {LONG}?", "Call 112."), (f"My contract: {LONG}?", "Read page 7.")),
            *(("Your old contact?", "112"), ("Your contract now?", "7")),
        ],
        [(f"{LONG} {'and so on ' * 200}?", "Call 112."), (f"{LONG} {'and so on ' * 200}", "Read page 7.")],
    ],
)
def test_another_question_or_another_wording_is_no_contradiction(pairs: list[tuple[str, str]]) -> None:
    assert check(pairs) == []


def test_the_same_question_is_reported_elsewhere_and_system_messages_make_two() -> None:
    assert check([("Where is it?", "In 3 days."), ("where  is it?", "In 9 days.")]) == []
    pairs = [("Where is my parcel?", "In 3 days."), ("Where is the parcel?", "In 9 days.")]
    assert check(pairs, systems=["A pirate.", "A butler."]) == []
    assert len(check(pairs, systems=["A pirate.", "a pirate."])) == 1


def test_many_pairs_are_counted_and_some_are_named() -> None:
    pairs = [
        (f"Where is {article} order for item{n}?", f"{days} days.") for n in range(9) for article, days in ARTICLES
    ]
    (found,) = check(pairs)
    assert found.message.startswith("9 pairs")
    assert "lines 1 and 2, 3 and 4, 5 and 6, 7 and 8, 9 and 10:" in found.message


ARTICLES = (("my", 3), ("the", 9))


def test_the_samples_have_none() -> None:
    for file in sorted(Path(trainer.samples.__file__).parent.glob("*.jsonl")):
        rows = read_chat(file).examples
        assert near_contradictions(rows, group_questions(rows), closed=closed_answers(rows) is not None) == []
