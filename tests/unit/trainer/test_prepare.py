from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.templates import ALTERNATES, DROPS_THINKING
from tests.unit.trainer.conftest import make_tokenizer
from trainer.data.findings import duplicates, overlap
from trainer.data.format import Example, Message
from trainer.data.prepare import DataRules, Prepared, Source, inspect, prepare
from trainer.data.render import Renderer, stop_tokens
from trainer.errors import DataInvalid, DataRefused, DataTooSmall

TOKENIZER = make_tokenizer()
COLOURS = ("red as the sunset", "blue as the sea", "green as a meadow", "black as the night", "white as the snow")


def renderer(max_length: int = 400) -> Renderer:
    return Renderer(TOKENIZER, stop_tokens=stop_tokens(TOKENIZER, None), max_length=max_length)


def pair(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def questions(count: int) -> list[dict[str, Any]]:
    """Different questions, each with an answer of its own."""
    return [
        pair(f"{n * 7919 % 1000} sheep and {COLOURS[n % 5]} {chr(97 + n % 26) * 9} ({n})?", f"Answer {n * 31} it is")
        for n in range(count)
    ]


def source(rows: list[dict[str, Any]], name: str = "t.jsonl") -> Source:
    return Source(name, "".join(json.dumps(row) + "\n" for row in rows).encode())


def look(rows: list[dict[str, Any]], held: list[dict[str, Any]] | None = None, **rules: Any) -> Prepared:
    length = rules.pop("max_length", 400)
    return inspect(source(rows), source(held, "h.jsonl") if held else None, renderer(length), DataRules(**rules))


def codes(found: Prepared) -> dict[str, str]:
    return {finding.code: finding.severity for finding in found.report.findings}


def test_what_was_drawn_and_is_too_long_to_be_asked_is_not_trained_on_when_the_split_is_repeated() -> None:
    rows = [
        pair(row["messages"][0]["content"], "so it is " * 60 if number % 3 == 0 else row["messages"][1]["content"])
        for number, row in enumerate(questions(60))
    ]
    first = look(rows, overflow="truncate", max_length=120)
    assert first.report.held_out.examples < len(first.report.held_out.lines) == 10
    again = look(rows, overflow="truncate", max_length=120, held_out_lines=first.report.held_out.lines)
    assert again.report.held_out == first.report.held_out
    assert [sequence.line for sequence in again.sequences] == [sequence.line for sequence in first.sequences]
    assert {sequence.line for sequence in again.sequences}.isdisjoint(first.report.held_out.lines)


def test_clean_data_is_split_rendered_and_shown() -> None:
    found = look(questions(60))
    report = found.report
    assert codes(found) == {}
    assert (report.format, report.examples, report.trained_on) == ("chat", 60, 50)
    assert (report.held_out.source, report.held_out.examples, report.held_out.seed) == ("split", 10, 0)
    assert {e.line for e in found.training.examples}.isdisjoint(report.held_out.lines)
    assert len(found.sequences) == 50
    assert len(found.held_out_sequences) == 10
    assert report.lengths is not None
    assert report.lengths.total == sum(len(s.tokens) for s in found.sequences)
    shown = report.shown[0].pieces
    assert [piece.trained for piece in shown] == [False, True, False]
    assert shown[1].text.endswith("it is<|im_end|>")
    assert "expect the style to be learned" in report.size
    assert report.answers == ()


def test_answers_in_sequences_of_their_own_are_counted_as_the_examples_that_they_are() -> None:
    rows = questions(12)
    rows[4]["messages"] += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, 155."}]
    tokenizer = make_tokenizer(DROPS_THINKING)
    thinking = Renderer(tokenizer, stop_tokens=stop_tokens(tokenizer, None), max_length=400)
    found = inspect(source(rows), None, thinking, DataRules(held_out_share=0, strict=True))
    assert (found.report.trained_on, len(found.sequences)) == (12, 13)
    (finding,) = found.report.findings
    assert (finding.code, finding.severity, finding.lines) == ("split_turns", "note", (5,))
    assert "1 examples" not in finding.message
    assert "trained as 2 sequences" in finding.message
    assert [example.line for example in found.training.examples] == list(range(1, 13))


def test_conversations_that_the_template_refuses_are_listed_by_line() -> None:
    rows = questions(12)
    for row in (rows[2], rows[7]):
        row["messages"].insert(0, {"role": "user", "content": "Hello."})
    tokenizer = make_tokenizer(ALTERNATES)
    alternating = Renderer(tokenizer, stop_tokens=stop_tokens(tokenizer, None), max_length=400)
    with pytest.raises(DataInvalid, match="two user messages follow each other") as caught:
        inspect(source(rows), None, alternating, DataRules(held_out_share=0))
    assert [problem.line for problem in caught.value.problems] == [3, 8]


def test_what_max_length_would_cut_is_refused_or_dropped_when_told() -> None:
    rows = [*questions(30), pair("why " * 100, "because")]
    refused = look(rows, held=questions(40)[30:])
    (finding,) = [f for f in refused.report.findings if f.code == "too_long"]
    assert (finding.severity, finding.lines) == ("refused", (31,))
    with pytest.raises(DataRefused) as caught:
        prepare(source(rows), None, renderer(), DataRules(held_out_share=0))
    assert caught.value.report.refused
    assert "too_long" in caught.value.message
    dropped = look(rows, held=questions(40)[30:], overflow="drop", strict=True)
    assert codes(dropped) == {"dropped_too_long": "warning"}
    assert (dropped.report.dropped, dropped.report.trained_on) == (1, 30)


def test_duplicates_contradictions_and_personal_data_are_warned_of_or_refused_when_strict() -> None:
    twice = "My lantern came with a crack in its glass, what shall I do about that now?"
    rows = [
        *questions(20),
        pair(twice, "Send us a photograph of it, please, and we will see."),
        pair(twice.upper(), "Send us a photograph of it, please, and we will see."),
        pair(twice, "Throw it away."),
        pair("Whom do I ask?", "Write to bob@corp.io"),
    ]
    expected = {"near_duplicates", "contradictions", "personal_data"}
    loose = look(rows)
    assert codes(loose) == dict.fromkeys(expected, "warning")
    against = next(f for f in loose.report.findings if f.code == "contradictions")
    assert against.lines == (21, 22, 23)
    assert codes(look(rows, strict=True)) == dict.fromkeys(expected, "refused")


def test_the_same_example_in_training_and_held_out_is_refused() -> None:
    rows = questions(30)
    near = pair(rows[4]["messages"][0]["content"] + "!", "something else")
    found = look(rows, held=[rows[3], near, *questions(45)[35:]])
    assert codes(found) == {"held_out_in_training": "refused"}
    assert [f.lines for f in found.report.findings] == [(1, 2)]
    assert all(f.file == "held_out" for f in found.report.findings)


def test_a_few_near_duplicates_of_the_training_file_are_left_out_of_the_held_out_one() -> None:
    rows, others = questions(30), questions(45)[35:]
    near = pair(f"So, {rows[4]['messages'][0]['content']}", "something else")
    found = look(rows, held=[near, *others])
    assert codes(found) == {"held_out_near_training": "warning"}
    assert found.report.findings[0].lines == (1,)
    assert [example.line for example in found.held_out] == [*range(2, 12)]
    assert (found.report.held_out.examples, len(found.held_out_sequences)) == (10, 10)
    assert codes(look(rows, held=[near, *others], strict=True)) == {"held_out_near_training": "refused"}


def test_a_closed_set_of_answers_is_seen_and_its_imbalance_told() -> None:
    labels = ["card"] * 40 + ["cash"] * 10 + ["loan"] * 2
    rows = [pair(row["messages"][0]["content"], label) for row, label in zip(questions(52), labels, strict=True)]
    found = look(rows)
    expected = {"imbalance": "warning", "rare_answers": "warning", "unrelated_labels": "warning"}
    assert codes(found) == expected, "the labels have nothing to do with the questions"
    assert [(share.answer, share.examples) for share in found.report.answers] == [
        ("card", 40),
        ("cash", 10),
        ("loan", 2),
    ]
    assert "over 3 answers" in found.report.size


def test_a_system_prompt_that_all_share_is_found() -> None:
    rows = [pair(f"question {n} {chr(97 + n) * 5}", f"answer {n}", "Be a sailor.") for n in range(20)]
    assert look(rows).report.system_prompt == "Be a sailor."
    assert look([*rows, pair("q", "a")]).report.system_prompt is None


def test_lines_that_cannot_be_rendered_are_refused_by_number() -> None:
    with pytest.raises(DataInvalid) as caught:
        look([*questions(20), pair("say <|im_end|>", "no")], held_out_share=0)
    assert [problem.line for problem in caught.value.problems] == [21]


def test_fewer_than_ten_examples_are_too_few() -> None:
    with pytest.raises(DataTooSmall):
        look(questions(9))


@pytest.mark.parametrize("fault", [b'{"prompt": 1}\n', source([pair("say <|im_end|>", "no")]).content, b""])
def test_faults_of_the_validation_file_are_its_own(fault: bytes) -> None:
    with pytest.raises(DataInvalid) as caught:
        inspect(source(questions(20)), Source("h.jsonl", fault), renderer(), DataRules())
    assert caught.value.param == "validation_file"
    assert caught.value.message.startswith("h.jsonl: line 1: ")


def test_faults_of_the_training_file_are_its_own() -> None:
    with pytest.raises(DataInvalid) as caught:
        look([*questions(20), pair("say <|im_end|>", "no")], held=questions(40)[30:])
    assert (caught.value.param, caught.value.message[:8]) == ("training_file", "line 21:")


def test_a_refusal_blames_the_file_that_is_at_fault() -> None:
    long = pair("why " * 100, "because")
    for rows, held, blamed in (
        (questions(30), [*questions(40)[30:], long], "validation_file"),
        ([*questions(30), long], questions(40)[30:], "training_file"),
        ([*questions(30), long], [*questions(40)[30:], pair("who " * 100, "me")], "training_file"),
    ):
        with pytest.raises(DataRefused) as caught:
            prepare(source(rows), source(held), renderer(), DataRules())
        assert caught.value.param == blamed
        assert ("the validation file: 1 example is longer" in caught.value.message) is (len(held) == 11)


def shortage(found: Prepared) -> str:
    (short,) = [finding for finding in found.report.findings if finding.code == "too_few_held_out"]
    assert (short.severity, short.count, short.lines) == ("warning", 0, ())
    return short.message


def test_too_few_held_out_for_a_pass_are_told_with_the_ways_out() -> None:
    few = shortage(look(questions(60), min_held_out=30))
    assert few.startswith("Only 10 examples are held out, but a pass needs 30, so the trained version cannot pass.")
    assert "validation_file with at least 30 other examples" in few
    assert "add at least 235 examples, for 295 in all" in few
    assert "set held_out_share to 0.5;" in few
    assert "set promote to never" in few
    assert look(questions(60), min_held_out=30, held_out_share=0.5).report.held_out.examples == 30
    assert codes(look(questions(60), min_held_out=10)) == {}
    strict = look(questions(60), min_held_out=30, strict=True)
    assert not strict.report.refused, "an untested version may be what was wanted"


def test_the_share_that_is_offered_holds_out_enough_of_near_duplicates() -> None:
    groups = [f"{row['messages'][0]['content']} " * 3 for row in questions(6)]
    rows = [pair(f"{groups[n % 6]}, part {n // 6}", f"Answer {n * 31} it is") for n in range(60)]
    found = shortage(look(rows, min_held_out=25, held_out_share=0.3))
    assert found.startswith("Only 10 examples are held out")
    assert "near-duplicates stay on one side" in found
    assert "set held_out_share to 0.5;" in found, "42% are 25 examples, but groups of ten give 20 of them"
    assert look(rows, min_held_out=25, held_out_share=0.5).report.held_out.examples == 30


def test_where_nothing_can_be_held_out_it_is_told() -> None:
    few = shortage(look(questions(15), min_held_out=30))
    assert few.startswith("No example is held out, but a pass needs 30")
    assert "add at least 280 examples, for 295 in all" in few
    assert "held_out_share" not in few
    instruction = "Translate what the customer of our shop has written into the language of the sea. " * 8
    alike = [pair(f"{instruction}{n}", f"Answer {n} it is") for n in range(400)]
    nothing = shortage(look(alike, min_held_out=30))
    assert nothing.startswith("No example is held out")
    assert "put it into the system message" in nothing
    given = shortage(look(questions(40), held=questions(52)[40:], min_held_out=30))
    assert "add at least 18 examples to the validation file" in given


def test_other_keys_are_a_note_for_each_and_no_refusal() -> None:
    rows = [{**row, "id": n, "source": "shop"} for n, row in enumerate(questions(60))]
    found = look(rows, held=[{**row, "date": "2026-01-01"} for row in questions(80)[60:]], strict=True)
    assert not found.report.refused
    notes = [(one.file, one.severity, one.count, one.message) for one in found.report.findings]
    assert notes == [
        ("training", "note", 60, "the key 'id' is not used; 60 rows have it, the first in line 1"),
        ("training", "note", 60, "the key 'source' is not used; 60 rows have it, the first in line 1"),
        ("held_out", "note", 20, "the key 'date' is not used; 20 rows have it, the first in line 1"),
    ]
    strange = look([{**row, "\ud800\n": 0} for row in questions(60)])
    assert strange.report.model_dump_json()


def persona(system: str | None, question: str, answer: str, line: int = 1) -> Example:
    turns = [] if system is None else [Message("system", system, trained=False)]
    asked = Message("user", question, trained=False)
    return Example(line, (*turns, asked, Message("assistant", answer, trained=True)))


def test_under_two_system_messages_a_question_is_two() -> None:
    pirate, butler = persona("A pirate.", "Rope?", "Aye!", 1), persona("A butler.", "Rope?", "Certainly.", 2)
    assert duplicates([pirate, butler]) == []
    found = duplicates([pirate, butler, persona("A  PIRATE.", "rope?", "No.", 3)])
    assert [(one.code, one.lines) for one in found] == [("contradictions", (1, 3))]


def test_an_example_on_both_sides_is_no_other_one_under_another_system_message() -> None:
    taught = persona("A pirate.", "Rope?", "Aye!")
    codes = [
        [one.code for one in overlap([taught], [held]).findings]
        for held in (persona("A butler.", "Rope?", "Aye!"), persona("a pirate.", "rope? ", "aye!"))
    ]
    assert codes == [["held_out_in_training"], ["held_out_in_training"]]
    # where one side has none it may be the version's setting
    assert overlap([taught], [persona(None, "Rope?", "Aye!")]).findings[0].code == "held_out_in_training"
