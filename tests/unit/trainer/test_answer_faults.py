"""What the data report says of answers that teach faults, of facts that change, and of labels that cannot be right."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import trainer.samples
from tests.support.classification import rows
from trainer.data.answer_faults import answer_faults, changing_facts
from trainer.data.format import Example, Message, read_chat
from trainer.data.label_noise import label_noise
from trainer.data.report import Finding
from trainer.samples import MARLOW

CARRIERS = ("Blue Heron Freight", "Grey Seal Couriers", "Fox Post")
PROSE = "Thank you for writing to us; we will look into it and answer you tomorrow."


def examples(pairs: Sequence[tuple[str, str]], system: str = "") -> list[Example]:
    before = (Message("system", system, False),) if system else ()
    return [
        Example(line, (*before, Message("user", question, False), Message("assistant", answer, True)))
        for line, (question, answer) in enumerate(pairs, 1)
    ]


def codes(findings: Sequence[Finding]) -> dict[str, tuple[int, ...]]:
    return {finding.code: finding.lines for finding in findings}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Dear [insert name], thank you.", "placeholders"),
        ("Dear {{ customer.name }}, thank you.", "placeholders"),
        ("TODO", "placeholders"),
        ("Dear [Customer Name], thank you.", "placeholders"),
        ("Your order [ORDER_ID] has left.", "placeholders"),
        ("Hello {customer_name}, thank you.", "placeholders"),
        ("Dear <NAME>, thank you.", "placeholders"),
        ("Lorem ipsum dolor sit amet.", "placeholders"),
        ("As an AI language model, I have no opinions.", "refusals"),
        ("I’m sorry, but I can’t do that.", "refusals"),
        ("I am unable to assist with that request.", "refusals"),
        ("I cannot provide that information.", "refusals"),
        ("I'm sorry, I can't help you.", "refusals"),
        ("I apologize, but I cannot fulfill this request.", "refusals"),
        ("Unfortunately, I'm not able to help with that.", "refusals"),
        ("I can't answer that question.", "refusals"),
        ("I must decline this request.", "refusals"),
        ("Your cafÃ© opens at nine.", "broken_characters"),
        ("It doesnâ€™t fit.", "broken_characters"),
        ("Half a character: \ufffd", "broken_characters"),
        ("<p>Thank you.</p>", "leftover_html"),
        ("Boots&nbsp;and socks.", "leftover_html"),
        ("what is  your NAME?", "repeated_questions"),
        ("“What is your name?”", "repeated_questions"),
        ("what is your name", "repeated_questions"),
    ],
)
def test_an_answer_with_a_fault_is_named(answer: str, code: str) -> None:
    others = [(f"Question {number}?", PROSE) for number in range(3)]
    assert codes(answer_faults(examples([("What is your name?", answer), *others]))) == {code: (1,)}


@pytest.mark.parametrize(
    "answer",
    [
        "Todo está bien, gracias.",
        "Your café doesn’t open — “soon”, they say; Größe 45.",
        "日本語の返事です。",
        "Use a < b and b > c.",
        "I can help you with that. I'm sorry that it took so long.",
        "Sorry, we are closed on Sundays.",
        "I can't wait to see you in the shop.",
        "I cannot thank you enough for your patience.",
        "I'm sorry, I can't find your order; could you send me its number?",
        "Press [Enter] and note that [1] is the first; the map is {a: 1}.",
        "Set the [PATH] variable as [described here](https://shop.test).",
        "See [your order](https://shop.test) in the list.",
    ],
)
def test_an_answer_without_a_fault_is_not_named(answer: str) -> None:
    others = [(f"Question {number}?", PROSE) for number in range(30)]
    assert answer_faults(examples([("What now?", answer), *others])) == []


def test_html_in_most_answers_is_their_format() -> None:
    assert answer_faults(examples([(f"Question {number}?", "<p>Thank you.</p>") for number in range(5)])) == []


def test_answers_that_end_within_a_sentence_are_named_where_the_others_do_not() -> None:
    whole = [(f"Question {number}?", PROSE) for number in range(40)]
    cut = ("Where is it?", "Thank you for writing to us; we will look into it and")
    assert codes(answer_faults(examples([*whole, cut]))) == {"cut_answers": (41,)}
    without_ends = [(question, answer.removesuffix(".")) for question, answer in whole]
    assert answer_faults(examples(without_ends)) == []


def test_answers_with_values_that_nobody_gave_state_facts() -> None:
    prices = [(f"What does the {thing} cost?", f"It costs £{number}.50.") for number, thing in enumerate("abcdefgh")]
    (found,) = changing_facts(examples(prices))
    assert (found.code, found.severity, found.count) == ("changing_facts", "warning", 8)
    assert "'£0.50', '£1.50', '£2.50'" in found.message
    assert "vector store" in found.message


def test_different_answers_about_different_orders_state_facts() -> None:
    pick = random.Random(1)
    orders = [(f"Who carries order TW-{1000 + number}?", pick.choice(CARRIERS)) for number in range(60)]
    assert changing_facts(examples(orders))[0].count == 60
    same = [(question, "Please look into your account, under orders.") for question, _ in orders]
    assert changing_facts(examples(same)) == []


ASKED = (
    "Who carries order TW-{}?",
    "Which carrier has TW-{}?",
    "TW-{}: who delivers it?",
    "Can you tell me the courier of order TW-{}, please?",
    "My order is TW-{}. Who brings it?",
)


@pytest.mark.parametrize(
    "answers",
    [("{}",), ("{} has it.", "It is on its way with {}, and should be with you soon.", "Your parcel travels with {}.")],
)
def test_different_answers_about_different_orders_state_facts_in_whatever_words(answers: tuple[str, ...]) -> None:
    pick = random.Random(1)
    orders = [
        (pick.choice(ASKED).format(1000 + number), pick.choice(answers).format(pick.choice(CARRIERS)))
        for number in range(60)
    ]
    assert changing_facts(examples(orders))[0].count == 60


def test_what_the_words_of_a_question_decide_is_no_fact_though_it_has_an_identifier() -> None:
    pick = random.Random(1)
    wordings = {
        "return": ("I want to send back order {}", "return order {} please", "how do I return {}"),
        "status": ("where is order {}", "has {} been sent yet", "when does order {} come"),
        "cancel": ("cancel order {}", "please stop {} from being sent, cancel it", "I would like to cancel {}"),
    }
    labels = [pick.choice([*wordings]) for _ in range(60)]
    pairs = [(pick.choice(wordings[label]).format(1000 + number), label) for number, label in enumerate(labels)]
    assert changing_facts(examples(pairs)) == []
    signed = [(question, f"{PROSE} Yours, the bench at Marlow & Thrush") for question, _ in pairs]
    assert changing_facts(examples(signed)) == []
    verbs = ("What is {} over {}?", "Divide {} by {}.", "How often does {1} fit into {0}?")
    sums = [(verbs[number % 3].format(f"{number}00", f"1{number}0"), str(number)) for number in range(10, 60)]
    assert (
        changing_facts(examples([(f"{question} ({number})", reply) for number, (question, reply) in enumerate(sums)]))
        == []
    )


@pytest.mark.parametrize(
    "answer",
    [
        "It is {}.99",
        "That costs {} kr",
        "It is {} € today",
        "We have {} lamps in stock",
        "There are {} left.",
        "It is {}% off this week",
        "We open at 9:{}",
        "We close at {} pm",
        "The newest firmware is 2.{}.1",
        "You need version 4.{}",
    ],
)
def test_values_without_a_currency_sign_state_facts_too(answer: str) -> None:
    pairs = [(f"How about the {thing} thing?", answer.format(number)) for number, thing in enumerate("abcdefgh", 10)]
    assert changing_facts(examples(pairs))[0].count == 8


def test_weekdays_that_nobody_gave_state_facts() -> None:
    days = ("Monday", "Tuesday", "Friday", "Saturday") * 3
    pairs = [
        (f"When does the {thing} van come?", f"On {day}.") for thing, day in zip("abcdefghijkl", days, strict=True)
    ]
    assert changing_facts(examples(pairs))[0].count == 12
    given = [
        (f"Does the {thing} van come on {day.lower()}?", answer)
        for thing, day, (_, answer) in zip("abcdefghijkl", days, pairs, strict=True)
    ]
    assert changing_facts(examples(given)) == []


@pytest.mark.parametrize(
    "answer",
    ["It is 19.55 m long.", "That took 2.50 hours.", "See section 4.2.", "100% cotton, 3 pieces.", "Two are left."],
)
def test_measures_and_the_like_do_not_change(answer: str) -> None:
    assert changing_facts(examples([(f"How about the {thing} thing?", answer) for thing in "abcdefgh"])) == []


def test_what_stands_in_the_prompt_or_is_worked_out_is_no_fact() -> None:
    passages = "; ".join(f"item {number} costs £{number}.50" for number in range(20))
    quoted = [(f"What does item {number} cost?", f"It costs £{number}.50, matey.") for number in range(20)]
    assert changing_facts(examples(quoted, system=passages)) == []
    sums = [
        (f"{number} boxes of $12 each?", f"{number} * 12 = ${12 * number}, so $120{number}.") for number in range(20)
    ]
    assert changing_facts(examples(sums)) == []


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Invoice of {day} March 2024, EUR 1.101,{day}", '{{"date": "2024-03-{day}", "total": "€1101.{day}"}}'),
        ("Paid on 2024-05-{day}, item 7", "That was {day} May, matey."),
        ("It is due on {day}.12.2024 at $1,2{day}.00", "Due December {day}: $12{day}"),
    ],
)
def test_what_the_prompt_says_in_another_spelling_is_no_fact(question: str, answer: str) -> None:
    pairs = [(question.format(day=day), answer.format(day=day)) for day in range(10, 29)]
    assert changing_facts(examples(pairs)) == []
    others = [(question.format(day=day), answer.format(day=day + 1)) for day in range(10, 29)]
    assert changing_facts(examples(others))[0].count == 19


def test_the_samples_have_none_of_it() -> None:
    files = sorted(Path(trainer.samples.__file__).parent.glob("*.jsonl"))
    assert len(files) == 6
    files += [MARLOW / "training.jsonl", MARLOW / "heldout.jsonl"]
    for file in files:
        found = read_chat(file).examples
        assert changing_facts(found) == []
        assert file.parent == MARLOW or answer_faults(found) == []


def labelled() -> list[tuple[str, str]]:
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows()]


def test_labels_that_fit_their_questions_are_fine() -> None:
    assert label_noise(examples(labelled())) == []


def test_shuffled_labels_are_named() -> None:
    pairs = labelled()
    labels = [label for _, label in pairs]
    random.Random(3).shuffle(labels)
    (found,) = label_noise(examples([(question, label) for (question, _), label in zip(pairs, labels, strict=True)]))
    assert (found.code, found.count) == ("unrelated_labels", len(pairs))


def test_a_label_unlike_those_of_very_similar_questions_is_named() -> None:
    things = ("hat", "coat", "sock", "shoe", "lamp", "desk", "chair", "rug", "bowl", "spoon", "clock", "vase")
    pairs = [(f"my {thing} is broken again, what can I do", "returns") for thing in things]
    pairs += [(f"when does the {thing} from my order arrive", "delivery") for thing in things]
    pairs += [(f"do you sell a blue {thing} as well", "products") for thing in things]
    pairs += [(f"I was charged twice for one {thing}", "payments") for thing in things]
    pairs += [("are you open on sundays", "products"), ("my teapot is broken again, what can I do", "payments")]
    assert codes(label_noise(examples(pairs))) == {"questionable_labels": (50,)}


@pytest.mark.parametrize("pairs", [[("a", "x")] * 60, [("", "x"), ("", "y")] * 40, [("a b", "x"), ("c d", "y")] * 10])
def test_what_cannot_be_compared_is_not_judged(pairs: list[tuple[str, str]]) -> None:
    assert label_noise(examples(pairs)) == []


def test_an_answer_of_nothing_but_punctuation_is_compared_at_once() -> None:
    start = time.process_time()
    assert answer_faults(examples([("What?", "!" * 100_000 + "a")])) == []
    assert time.process_time() - start < 4  # quadratic: a minute
