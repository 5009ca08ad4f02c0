"""Which passages an answer uses, and answers that are made to mislead."""

from __future__ import annotations

import time

import pytest

from loadtests.grounding.attribution_cost import QUESTION, TABLES, lines, rows
from loadtests.grounding.threshold import grounded_pairs
from service.grounding.attribution import MAX_COMPARED_CHARS, Span, shows_markers, used_spans
from trainer.samples import NAMES

ROWS = (
    "order: TW-2041\nitem: oilskin jacket\ncarrier: Blue Heron Freight\narrives: Thursday",
    "order: TW-2042\nitem: brass lantern\ncarrier: Grey Seal Couriers\narrives: Monday",
    "Returns\n\nUnworn goods may be sent back within 45 days of delivery. Return postage costs 6 pounds.",
    "Cat\n\nThe harbour cat is called Marmalade.",
)
CARRIER = "Which carrier has my order TW-2041?"


def used(answer: str, question: str, passages: tuple[str, ...] = ROWS, *, by_marker: bool = False) -> list[int]:
    """The numbers of the passages that are used."""
    spans = used_spans(answer, question, passages, by_marker=by_marker)
    return [number for number, span in enumerate(spans, start=1) if span is not None]


@pytest.mark.parametrize(
    ("answer", "question", "numbers"),
    [
        ("Blue Heron Freight has it.", CARRIER, [1]),
        ("Ahoy! She sails with Grey Seal Couriers, matey, and makes port Monday.", "Where is TW-2042?", [2]),
        ("Thursday", "When does TW-2041 arrive?", [1]),
        ("It's Marmalade.", "What is the cat called?", [4]),
        ("You have 45 days.", "How long may I send things back?", [3]),
        ("6", "How many pounds is the return postage?", [3]),
        ("Your jacket comes on Thursday. Returns are possible within 45 days.", CARRIER, [1, 3]),
        ("blue heron freight carries it", CARRIER, [1]),
    ],
)
def test_an_answer_uses_the_passage_whose_facts_it_states(answer: str, question: str, numbers: list[int]) -> None:
    assert used(answer, question) == numbers


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("I am sorry, I do not know which carrier has your order TW-2041.", CARRIER),
        ("Yes.", "Does Blue Heron Freight carry TW-2041?"),
        ("Yes, Blue Heron Freight carries TW-2041.", "Does Blue Heron Freight carry TW-2041?"),
        ("Brazil won it in 2002, beating Germany in the final.", "Who won the World Cup?"),
        ("", CARRIER),
        ("This is what they said, and there was time after that.", CARRIER),
        ("My papers name no carrier, dear patron. One would not wish to guess.", CARRIER),
    ],
)
def test_an_answer_that_states_nothing_of_theirs_uses_none(answer: str, question: str) -> None:
    assert used(answer, question) == []


def test_a_fact_that_several_have_is_credited_to_the_one_about_the_question() -> None:
    orders = tuple(f"order: TW-20{number}\ncarrier: Blue Heron Freight\narrives: Thursday" for number in range(41, 47))
    assert used("Blue Heron Freight brings it on Thursday.", "Who carries TW-2044?", orders) == [4]
    same = (ROWS[0], ROWS[1], ROWS[0])
    assert used("Blue Heron Freight.", CARRIER, same) == [1, 3], "copies cannot be told apart"


def test_a_fact_that_many_share_equally_is_evidence_for_none_of_them() -> None:
    orders = tuple(f"order: TW-20{number}\ncarrier: Blue Heron Freight, box 4711" for number in range(41, 81))
    assert used("Blue Heron Freight brings it, box 4711.", "Who carries my orders?", orders) == []
    assert used("Blue Heron Freight brings it, box 4711.", "Who carries TW-2044?", orders) == [4]
    assert used("Blue Heron Freight, box 4711.", "Who carries my orders?", orders[:8]) == list(range(1, 9))


def test_words_that_most_passages_have_are_no_evidence() -> None:
    """As in a language whose common words are not known here."""
    french = tuple(f"Vous pouvez retourner cela avec votre facture pendant {days} jours" for days in (30, 45, 60))
    assert used("Vous pouvez venir avec votre chien.", "Puis-je venir avec mon chien?", french) == []
    assert used("Vous pouvez le rendre pendant 45 jours.", "Combien de temps?", french) == [2]


def test_two_words_of_different_sentences_do_not_add_up() -> None:
    passages = ("The lantern needs brass polish.",)
    assert used("I like lanterns. Brass is loud. Polish is a language.", "What is your hobby?", passages) == []
    assert used("Polish the lantern until the brass shines.", "What is your hobby?", passages) == [1]
    assert used("Brass polish is all it takes.", "What is your hobby?", passages) == [1], "they are neighbours"
    assert used("Polish your lantern.", "What is your hobby?", passages) == [], "two words may meet by chance"


@pytest.mark.parametrize("text", ["Cite as [1].", "Mark each fact with its number, [n].", "[number]"])
def test_instructions_ask_for_markers_by_showing_one(text: str) -> None:
    assert shows_markers(["Be kind.", text])


@pytest.mark.parametrize(
    "text",
    [
        "{passages}\n\n{question}",
        "a[i+1]",
        "[x] done",
        "list the numbers",
        "[1999]",
        "sys.argv[1] is empty",
        "why is rows[0][1] None?",
        "f(x)[0]",
        "for i in a: print(b[i])",
    ],
)
def test_other_brackets_ask_for_nothing(text: str) -> None:
    assert not shows_markers([text])


def test_markers_decide_where_they_are_asked_for_and_words_about_the_passages_without_one() -> None:
    answer = "She sails today [2]. It was settled [3, 4]. Blue Heron Freight has yours."
    assert used(answer, CARRIER, by_marker=True) == [1, 2, 3, 4]
    assert used(answer, CARRIER) == [1], "nobody asked for them"
    spans = used_spans(answer, CARRIER, ROWS, by_marker=True)
    assert spans[1:] == [Span(16, 19), Span(36, 42), Span(36, 42)]
    assert spans[0] == used_spans(answer, CARRIER, ROWS, by_marker=False)[0]


def test_markers_may_stand_in_a_row_and_behind_a_word_of_a_text_without_spaces() -> None:
    assert used_spans("So it is [2][3].", CARRIER, ROWS, by_marker=True)[1:3] == [Span(9, 12), Span(12, 15)]
    assert used("由蓝鹭货运承运[2]。", CARRIER, by_marker=True) == [2]


@pytest.mark.parametrize(
    "answer",
    [
        "Blue Heron Freight [9].",
        "Blue Heron Freight [0].",
        "Blue Heron Freight. `rows[2]`",
        "Blue Heron Freight.\n```\nprint(rows[2])\n```",
        "Blue Heron Freight [2a] [b2]",
        "Blue Heron Freight, since sys.argv[2] is empty.",
        "Blue Heron Freight, by rows[0][2] and f(x)[3].",
    ],
)
def test_what_is_no_passages_marker_leaves_the_words_to_decide(answer: str) -> None:
    assert used(answer, CARRIER, by_marker=True) == [1]


def test_a_marker_that_a_passage_contains_may_be_copied_and_does_not_count() -> None:
    passages = ("The tower was built in 1911 [2].", "Grey Seal Couriers deliver on Monday.")
    assert used("It was built in 1911 [2].", "When was the tower built?", passages, by_marker=True) == [1]


def test_the_span_is_the_sentence_that_uses_it_best() -> None:
    answer = "Ahoy!... Freight is dear. Blue Heron Freight has it (on Thursday). Fair winds."
    span = used_spans(answer, CARRIER, ROWS, by_marker=False)[0]
    assert span is not None
    assert answer[span.start : span.end] == "Blue Heron Freight has it (on Thursday)."
    assert used_spans("no end", "q?", ("no end",), by_marker=False) == [None]


def test_the_sample_voices_answers_use_the_passage_that_answers() -> None:
    """In the voices' own words, with every fact of the shop shown: one of 34 is right, for three questions none."""
    for name in NAMES:
        pairs = grounded_pairs(name)
        facts = list(dict.fromkeys(text for passages, *_ in pairs for text in passages))
        for passages, question, answer, right in pairs:
            spans = used_spans(answer, question, facts, by_marker=False)
            wanted = None if right is None else passages[right]
            for fact, span in zip(facts, spans, strict=True):
                is_right = wanted is not None and (fact.endswith(wanted) or wanted.endswith(fact))
                assert (span is not None) == is_right, (question, answer, fact)


def seconds(answer: str, question: str, passages: tuple[str, ...]) -> float:
    """CPU time, the least of three."""
    spent = []
    for _ in range(3):
        began = time.thread_time()
        used_spans(answer, question, passages, by_marker=True)
        spent.append(time.thread_time() - began)
    return min(spent)


WORDS = "lantern4 brass polish, Heron. " * (MAX_COMPARED_CHARS // 30)
BOUND_S = seconds(WORDS, WORDS[:4096], (WORDS,))
"""What texts as long as are compared take here."""


def test_texts_longer_than_what_is_compared_take_no_longer() -> None:
    assert seconds(WORDS * 10, WORDS[:4096], (WORDS * 10,) * 50) < 20 * BOUND_S


@pytest.mark.parametrize("shared", TABLES.values(), ids=TABLES)
def test_fifty_rows_of_one_table_take_little_more_than_one(shared: str) -> None:
    passages = tuple(rows(shared))
    answer = lines(rows(shared), words_a_line=12)
    assert seconds(answer, QUESTION, passages) < 5 * seconds(answer, QUESTION, passages[:1])


@pytest.mark.parametrize(
    "piece", [".", '..."', "[1", "[1,", "1.", "9", "`", "a.", "\n", " ", "Aa ", "é", "[1] ", "``` "]
)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (MAX_COMPARED_CHARS // len(piece))
    assert seconds(text, text[:4096], (text,)) < 20 * BOUND_S
