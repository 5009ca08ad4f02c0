"""Held-out questions that were trained on are found in any disguise, and honest ones are left in peace."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from trainer.data.findings import overlap
from trainer.data.folding import fold, key
from trainer.data.format import Example, Message
from trainer.data.formats import read_dataset
from trainer.data.similar import SIMILAR, NearDuplicates, groups
from trainer.data.split import question, split
from trainer.data.trained_examples import MAX_SIMILAR_SHARE, NormalizedExample, Relation, TrainedExamples
from trainer.samples import data_file, heldout_file

LOOKALIKES = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
GREEK = str.maketrans("ovABEHIKMNOPTXYZ", "ονΑΒΕΗΙΚΜΝΟΡΤΧΥΖ")
DISGUISES: dict[str, Callable[[str], str]] = {
    "exclamation mark": lambda text: f"{text}!",
    "no punctuation": lambda text: "".join(each for each in text if each not in ".,;:!?"),
    "greeting": lambda text: f"Hello there! {text}",
    "greeting without punctuation": lambda text: f"hi {text}",
    "please": lambda text: f"{text.rstrip('.?!')}, please",
    "please and thanks": lambda text: f"Please, {text} Many thanks in advance!",
    "sign-off": lambda text: f"{text}\n\nKind regards",
    "zero-width spaces": lambda text: "\u200b".join(text),
    "soft hyphens": lambda text: "\u00ad".join(text),
    "byte order mark and bidi marks": lambda text: f"\ufeff\u202a{text}\u202c",
    "Khmer vowels and unassigned code points that show nothing": lambda text: "\u17b4\u2065\ufff0".join(text),
    "unassigned variation selectors": lambda text: "\U000e01f0\U000e0fff".join(text),
    "variation selectors": lambda text: text.replace("e", "e\ufe0e").replace("a", "a\U000e0100"),
    "Cyrillic": lambda text: text.translate(LOOKALIKES),
    "Greek": lambda text: text.translate(GREEK),
    "full width": lambda text: "".join(chr(ord(each) + 0xFEE0) if "!" <= each <= "~" else each for each in text),
    "mathematical letters": lambda text: "".join(
        chr(0x1D41A + ord(each) - ord("a")) if "a" <= each <= "z" else each for each in text
    ),
    "accents": lambda text: text.replace("a", "á").replace("e", "e\u0323\u0302"),
    "case and spaces": lambda text: f"  {text.upper()}".replace(" ", " \u00a0\n"),
    "spaces in words": lambda text: re.sub(r"\b(?!morn)([a-z]{2})([a-z])(?!\2)(?=[a-z]{4})", r"\1\2 ", text),
    "letters ten times": lambda text: text.replace("e", "e" * 10),
}


def sample(name: str) -> list[Example]:
    path = data_file(name)
    return list(read_dataset(path.name, path.read_bytes())[1].examples)


def held_out(name: str) -> list[str]:
    return [question(each) for each in read_dataset("h", heldout_file(name).read_bytes())[1].examples]


def example(text: str, *, answer: str = "a", system: str | None = None, line: int = 1) -> Example:
    turns = [Message("system", system, trained=False)] if system is not None else []
    turns += [Message("user", text, trained=False), Message("assistant", answer, trained=True)]
    return Example(line, tuple(turns))


def numbered(texts: list[str], answer: str = "a") -> list[Example]:
    return [example(text, answer=answer, line=line) for line, text in enumerate(texts, start=1)]


def relations(trained: list[str], asked: list[str]) -> dict[int, Relation]:
    known = TrainedExamples(NormalizedExample.example(each) for each in numbered(trained))
    return {leak.index: leak.relation for leak in known.leaks([*map(NormalizedExample.example, numbered(asked))])}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_every_one_of_140_trained_questions_is_found_in_disguise(disguise: Callable[[str], str]) -> None:
    texts = [question(each) for each in sample("pemberton")]
    assert len(texts) == 140
    assert relations(texts, [disguise(text) for text in texts]) == dict.fromkeys(range(140), Relation.SAME)


def test_a_misspelling_or_an_unknown_interjection_makes_a_near_duplicate() -> None:
    texts = [question(each) for each in sample("tidewater")]
    long = [text for text in texts if len(text) >= 40]
    for disguise in (lambda text: f"{text} \U0001f642", lambda text: f"So, {text}", lambda text: text[:20] + text[21:]):
        found = relations(texts, [disguise(text) for text in long])
        assert len(found) > 0.9 * len(long) > 20


@pytest.mark.parametrize(
    "disguise",
    [
        lambda text: f"I was wondering: {text}",
        lambda text: f"As a customer, {text}",
        lambda text: f"Ticket 4711: {text}",
        lambda text: f"{text} My name is Ann.",
        lambda text: f"Your shop was recommended to me by a friend who lives by the sea, so: {text}",
    ],
    ids=["I was wondering", "as a customer", "ticket", "my name is Ann", "a long preamble"],
)
def test_words_around_trained_questions_make_no_held_out_file(disguise: Callable[[str], str]) -> None:
    texts = [question(each) for each in sample("pemberton")]
    found = relations(texts, [disguise(text) for text in texts])
    assert len(found) >= 0.8 * len(texts)
    assert set(found.values()) <= {Relation.SIMILAR, Relation.CONTAINS}
    refused = overlap(numbered(texts), numbered([disguise(text) for text in texts])).findings
    assert [(each.code, each.severity) for each in refused] == [("held_out_in_training", "refused")]
    assert " contains the trained " in refused[0].message or "near-duplicate" in refused[0].message


def test_a_question_that_holds_a_short_one_or_a_small_part_of_itself_is_no_leak() -> None:
    short, longer = "Where is my parcel?", "Can you change the address of my order?"
    story = "I ordered a lamp, two chairs and a kettle from you last Monday, and paid by card at once. "
    assert relations([short], [f"{story}{short}"]) == {}
    assert relations([longer], [f"{story}{longer}"]) == {0: Relation.CONTAINS}
    assert (
        relations([longer], [f"{story}{longer} {story.upper()} My neighbour at number 7 took one of the parcels."])
        == {}
    )
    words = longer.rstrip("?").split()
    assert relations([longer], [" ".join(words[::-1])]) == {}


def test_a_conversation_that_goes_on_after_a_trained_question_asks_something_else() -> None:
    first, next_question = "Can you change the address of my order?", "And could you send it a week later as well?"
    trained = [NormalizedExample.of([("user", first)], "Yes.")]
    held = [
        NormalizedExample.of([("user", first), ("assistant", "Yes."), ("user", next_question)], "Of course."),
        NormalizedExample.of([("user", "Hello"), ("assistant", "Hi."), ("user", f"By the way, {first}")], "Yes."),
    ]
    leaks = TrainedExamples(trained).leaks(held)
    assert [(leak.index, leak.relation) for leak in leaks] == [(1, Relation.CONTAINS)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 - 2?", "What is 3 + 2?"),
        ("What is 3-2?", "What is 3/2?"),
        ("Is 1.5 enough?", "Is 15 enough?"),
        ("Add 1 2", "Add 12"),
        ("Is a < b?", "Is a > b?"),
        ("How do I pay 100?", "How do I pay 1000?"),
        ("Do you teach C?", "Do you teach C++?"),
        ("AA batteries", "AAA batteries"),
        ("Who won World War II?", "Who won World War III?"),
        ("Do you have it in XL?", "Do you have it in XXXL?"),
        ("How do I say thanks?", "How do I say please?"),
        ("Translate to French: Thank you", "Translate to French: please"),
        ("Hello in French", "Good morning in French"),
        ("Hello!", "Thanks!"),
        ("???", "!!!"),
        ("👍", "👎"),
        ("Где мой заказ?", "Где мой возврат?"),
        ("我的包裹在哪里？", "我的退款在哪里？"),
    ],
)
def test_what_changes_the_question_is_not_folded_away(one: str, other: str) -> None:
    assert key(fold(one)) != key(fold(other))


@pytest.mark.parametrize(
    "text", ["", " ", "?!", "hi", "Thanks!", "\u200b", "ΑΘΗΝΑ Где ß İ", "哈哈哈", "- -", "a" * 5000]
)
def test_folding_again_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)


HONEST = [
    "I am still waiting on my card?",
    "What can I do if my card still hasn't arrived after 2 weeks?",
    "Can I track my card while it is in the process of delivery?",
    "How do I know if I will get my card, or if it is lost?",
    "When did you send me my new card?",
    "Do you have info about the card on delivery?",
    "What do I do if I still have not received my new card?",
    "Does the package with my card have tracking?",
    "I ordered my card but it still isn't here",
    "Why has my new card still not come?",
    "Is there a way to know when my card will arrive?",
    "My card has not arrived yet.",
    "When will I get my card?",
    "Do you know if there is a tracking number for the new card you sent me?",
    "I have been waiting over a week. Is the card still coming?",
    "I'm starting to think my card is lost",
]
"""Questions of one intent, `card_arrival`: the beginning of BANKING77 (Casanueva et al. 2020, CC BY 4.0)."""


def test_short_questions_with_one_label_are_no_leaks() -> None:
    assert relations(HONEST[::2], HONEST[1::2]) == {}
    found = overlap(numbered(HONEST[::2], "card_arrival"), numbered(HONEST[1::2], "card_arrival"))
    assert found == ([], frozenset())


@pytest.mark.parametrize("name", ["pemberton", "tidewater"])
def test_the_samples_held_out_examples_are_no_leaks(name: str) -> None:
    assert relations([question(each) for each in sample(name)], held_out(name)) == {}


def test_an_instruction_that_all_questions_share_makes_no_leaks_but_hides_none() -> None:
    instruction = "Name the intent of the customer's message, with exactly one of the labels and nothing else. " * 4
    asked = [f"{instruction}\n\n{text}" for text in HONEST]
    assert relations(asked[::2], asked[1::2]) == {}
    assert relations(asked[::2], [f"{asked[2]} \U0001f642", f"{asked[0]} thanks"]) == {
        0: Relation.SIMILAR,
        1: Relation.SAME,
    }


def test_no_near_duplicate_is_missed() -> None:
    """Against every pair, many of which are near the threshold."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(400)]
    texts = [" ".join(rng.sample(words, 12)) for _ in range(120)]
    asked = [" ".join(rng.sample(words, at % 4) + text.split()[at % 5 :]) for at, text in enumerate(texts)]
    sets = [{text[at : at + 4] for at in range(len(text) - 3)} for text in (*texts, *asked)]
    near = [
        tuple(at for at in range(120) if len(sets[at] & own) / len(sets[at] | own) >= SIMILAR and texts[at] != text)
        for own, text in zip(sets[120:], asked, strict=True)
    ]
    assert 20 < sum(map(bool, near)) < 110
    assert [match.similar for match in NearDuplicates(texts).of(asked)] == near


def test_neither_another_answer_nor_another_system_message_hides_a_copy() -> None:
    taught = TrainedExamples([NormalizedExample.example(example("Rope?", answer="Aye!", system="A pirate."))])
    asked = [
        example("rope", answer="Nay!", system="a PIRATE"),
        example("rope", answer="Aye!"),
        example("rope", answer="Aye!", system="A butler."),
    ]
    normalized = [*map(NormalizedExample.example, asked)]
    relations = [Relation.SAME, Relation.SAME, Relation.OTHER_SYSTEM]
    assert [match.relation for match in taught.matches(normalized)] == relations
    assert [leak.index for leak in taught.leaks(normalized)] == [0, 1, 2]


def dated(texts: list[str], month: int) -> list[Example]:
    return [
        example(text, system=f"You help in a shop. Today is 2026-{month:02}-{1 + line % 28:02}.", line=line)
        for line, text in enumerate(texts, start=1)
    ]


def test_copies_under_another_date_in_the_system_message_are_refused() -> None:
    texts = [question(each) for each in sample("pemberton")]
    found = overlap(dated(texts, 3), dated(texts, 4))
    assert [(each.code, each.severity, each.count) for each in found.findings] == [
        ("held_out_in_training", "refused", 140)
    ]
    assert len(found.left_out) == 140
    few = overlap(dated(texts[:100], 3), dated(texts[95:], 4))
    assert [(each.code, each.severity) for each in few.findings] == [("held_out_near_training", "warning")]
    assert few.left_out == frozenset(range(1, 6))


def test_a_common_system_message_in_another_wording_hides_no_copy_either() -> None:
    texts = [question(each) for each in sample("pemberton")]
    taught = [example(text, system="Be kind.", line=line) for line, text in enumerate(texts, 1)]
    asked = [example(text, system="Be very kind.", line=line) for line, text in enumerate(texts, 1)]
    assert [each.code for each in overlap(taught, asked).findings] == ["held_out_in_training"]


def test_where_personas_answer_differently_their_questions_are_told_apart() -> None:
    texts = [question(each) for each in sample("pemberton")]

    def by(persona: str, asked: list[str]) -> list[Example]:
        return [example(text, answer=f"{persona}: {text}", system=persona, line=at) for at, text in enumerate(asked, 1)]

    found = overlap([*by("Pirate", texts), *by("Butler", texts[:40])], by("Butler", texts[40:]))
    assert found.left_out == frozenset()
    assert "too optimistic" in found.findings[0].message
    dodge = overlap([*dated(texts, 3), *by("Butler", texts[:5])], dated(texts, 4))
    assert len(dodge.left_out) == 140, "a few such questions do not make the system message decide"


def test_disguised_copies_never_straddle_a_split() -> None:
    texts = [question(each) for each in sample("pemberton")][:70]
    disguises = [DISGUISES[name] for name in ("greeting", "Cyrillic", "spaces in words")]
    rows = numbered([disguised for text in texts for disguised in (text, *(disguise(text) for disguise in disguises))])
    held = set(split(rows).held_out)
    assert len(held) == 28
    assert {at // 4 for at in held}.isdisjoint(at // 4 for at in range(len(rows)) if at not in held)
    assert len(groups([question(each) for each in rows])) <= 70


def test_a_question_and_the_same_with_words_around_it_never_straddle_a_split() -> None:
    texts = [text for text in map(question, sample("pemberton")) if len(text) > 28]
    rows = numbered([wrapped for text in texts for wrapped in (text, f"As a customer, {text} My name is Ann.")])
    held = set(split(rows, share=0.3).held_out)
    assert len(held) >= 0.25 * len(rows)
    assert {at // 2 for at in held}.isdisjoint(at // 2 for at in range(len(rows)) if at not in held)


def test_a_few_near_duplicates_are_left_out_and_many_are_refused() -> None:
    trained = [question(each) for each in sample("tidewater")]
    long = [text for text in trained if len(text) >= 40]
    others = held_out("tidewater")[:16]
    similar = [f"So, {text}" for text in long[:5]]
    few = overlap(numbered(trained), numbered([*others, *similar[:4]]))
    assert [(each.code, each.severity, each.lines) for each in few.findings] == [
        ("held_out_near_training", "warning", (17, 18, 19, 20))
    ]
    assert few.left_out == {17, 18, 19, 20}
    assert f"{similar[0]!r} is a near-duplicate of the trained {long[0]!r}" in few.findings[0].message
    assert 4 / 20 <= MAX_SIMILAR_SHARE < 5 / 21
    many = overlap(numbered(trained), numbered([*others, *similar]))
    assert [(each.code, each.severity, each.lines) for each in many.findings] == [
        ("held_out_in_training", "refused", (17, 18, 19, 20, 21))
    ]


def test_the_message_counts_names_and_shows_an_example() -> None:
    text = "Where is the parcel that I ordered last week, and why " + "oh why " * 20 + "is it late"
    found = overlap(numbered([text]), [example(f"Hi! {text}?", line=7)])
    message = found.findings[0].message
    assert message.startswith("1 of 1 held-out examples (the first: line 7) repeat or nearly repeat questions in the ")
    assert f"{f'Hi! {text}'[:79] + '…'!r} repeats the trained {text[:79] + '…'!r}" in message
    assert message.endswith("Remove them from one of the two files")
