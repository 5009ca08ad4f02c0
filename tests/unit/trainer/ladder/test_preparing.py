"""Dividing the data of a ladder: three parts that share no near-duplicate, each with its own lines of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.data.format import parse_chat
from trainer.data.report import Report
from trainer.data.similar import groups
from trainer.data.split import question
from trainer.errors import DataTooSmall
from trainer.ladder.preparing import (
    QUICK_HELD_OUT,
    QUICK_TRAINING,
    PreparedData,
    example_settings,
    faults,
    learning_subsets,
    prepare_data,
)

WORDS = ("lamp", "kettle", "blanket", "spade", "candle", "chair", "notebook", "basket", "mug", "rug")
VERBS = ("wobbles", "leaks", "faded", "never came", "smells of smoke", "squeaks", "is too small", "cracked")
PLACES = ("kitchen", "garden", "hall", "attic", "office", "school", "boat", "van", "shed", "studio")


def content(count: int) -> bytes:
    rows = []
    for number in range(count):
        word, verb = WORDS[number % 10], VERBS[number // 10 % 8]
        place = PLACES[number // 80 % 10]
        asked = f"The {word} in our {place} {verb}; we bought {number * 37 % 911} of them for {number} people"
        rows.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": verb}]})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def prepared(base: Path, count: int, *, quick: bool = False) -> PreparedData:
    return prepare_data(
        "examples.jsonl", content(count), base_dir=base, context=8192, given=(), quick=quick, check=lambda: None
    )


def test_the_parts_share_no_line_and_no_near_duplicate(base_dir: Path) -> None:
    data = prepared(base_dir, 320)
    every = {name: parse_chat(part) for name, part in data.parts.items()}
    assert {name: len(part) for name, part in every.items()} == data.counts
    parts = {name: every[name] for name in ("training", "choosing", "held_out")}
    assert sum(map(len, parts.values())) == 320
    owner = [name for name, part in parts.items() for _ in part]
    questions = [question(example) for part in parts.values() for example in part]
    assert len(set(questions)) == 320
    assert all(len({owner[index] for index in group}) == 1 for group in groups(questions))


def test_the_subsets_of_the_learning_curve_are_within_each_other(base_dir: Path) -> None:
    data = prepared(base_dir, 480)
    texts = {name: set(part.splitlines()) for name, part in data.parts.items()}
    assert texts["quarter"] < texts["half"] < texts["training"]
    assert data.counts["half"] == data.counts["training"] // 2
    assert data.counts["quarter"] == data.counts["training"] // 4
    subsets = {"half", "quarter", "cleanest_half"}
    assert not subsets & prepared(base_dir, 480, quick=True).parts.keys()
    assert not subsets & prepared(base_dir, 160).parts.keys()


def test_the_cleanest_half_has_the_fewest_findings_and_is_the_random_half_otherwise() -> None:
    examples = parse_chat(content(240))
    faulty = {example.line for example in examples[:100]}
    subsets = learning_subsets(examples, dict.fromkeys(faulty, 1) | {examples[0].line: 3})
    cleanest, half = ({example.line for example in subsets[name]} for name in ("cleanest_half", "half"))
    assert len(cleanest) == len(half) == 120
    assert not cleanest & faulty
    assert learning_subsets(examples, {})["cleanest_half"] == subsets["half"]
    # of examples with equally many findings, the same are drawn
    clean = {example.line for example in examples} - faulty
    assert half & clean <= cleanest


def test_findings_count_against_the_examples_that_they_name_and_no_others(base_dir: Path) -> None:
    rows = [json.loads(line) for line in content(320).splitlines()]
    for row in rows[:60]:
        row["messages"][-1]["content"] = f"{row['messages'][-1]['content']} [insert name]"
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    data = prepare_data("e.jsonl", text, base_dir=base_dir, context=8192, given=(), quick=False, check=lambda: None)
    counted = faults(data.report)
    placeholders = next(finding for finding in data.report.findings if finding.code == "placeholders")
    assert (placeholders.count, len(placeholders.lines), len(placeholders.every_line)) == (60, 20, 60)
    assert set(range(1, 61)) <= counted.keys()
    assert b"[insert name]" in data.parts["half"]
    assert b"[insert name]" not in data.parts["cleanest_half"]
    assert 0 < data.cleaner <= data.counts["half"]
    stored = Report.model_validate_json(data.report.model_dump_json())
    assert "every_line" not in data.report.model_dump_json()
    assert faults(stored) != counted, "a stored report names the first lines alone"


def test_examples_to_learn_from_carry_the_group_of_their_near_duplicates(base_dir: Path) -> None:
    lines = [json.loads(line) for line in content(160).splitlines()]
    lines[7]["group"] = "ticket 7"
    twins = json.loads(json.dumps(lines[10:30]))
    for twin in twins:
        twin["messages"][0]["content"] += "!"
    rows = "".join(json.dumps(row) + "\n" for row in (*lines, *twins)).encode()
    data = prepare_data("f.jsonl", rows, base_dir=base_dir, context=8192, given=(), quick=True, check=lambda: None)
    groups_of: dict[str, set[str | None]] = {}
    for example in parse_chat(data.parts["training"]):
        groups_of.setdefault(question(example).rstrip("!"), set()).add(example.group)
    assert all(len(found) == 1 and None not in found for found in groups_of.values())
    assert {example.group for example in parse_chat(data.parts["held_out"])} <= {None, "ticket 7"}


def test_a_closed_set_is_found_and_every_fixed_example_has_another_answer(base_dir: Path) -> None:
    data = prepared(base_dir, 320)
    assert data.answers == tuple(sorted(VERBS))
    assert data.metric == {"name": "exact_match"}
    shown = example_settings(data.shown)
    assert sorted(pair["assistant"] for pair in shown) == sorted(VERBS)
    held_out = {question(example) for example in parse_chat(data.parts["held_out"])}
    assert not held_out & {pair["user"] for pair in shown}


def test_quick_asks_fewer_questions_and_learns_from_fewer_examples(base_dir: Path) -> None:
    data = prepared(base_dir, 800, quick=True)
    assert data.counts["held_out"] <= QUICK_HELD_OUT
    assert data.counts["training"] == QUICK_TRAINING
    assert any("quick" in note for note in data.notes)


def test_too_few_examples_are_refused_with_the_number_that_is_needed(base_dir: Path) -> None:
    with pytest.raises(DataTooSmall, match="Bring 60 or more"):
        prepared(base_dir, 40)


def with_system(texts: tuple[str, ...]) -> bytes:
    rows = [json.loads(line) for line in content(160).splitlines()]
    for number, row in enumerate(rows):
        row["messages"].insert(0, {"role": "system", "content": texts[number % len(texts)]})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_system_message_that_every_example_has_becomes_a_candidate_and_leaves_the_questions(base_dir: Path) -> None:
    data = prepare_data(
        "f.jsonl",
        with_system(("Be brief.",)),
        base_dir=base_dir,
        context=8192,
        given=(),
        quick=True,
        check=lambda: None,
    )
    assert data.instructions[0] == "Be brief."
    parts = [example for part in data.parts.values() for example in parse_chat(part)]
    assert all(message.role != "system" for example in parts for message in example.messages)


def test_system_messages_that_differ_leave_no_instructions_to_try(base_dir: Path) -> None:
    texts = ("Be brief.", "Be kind.")
    data = prepare_data(
        "f.jsonl", with_system(texts), base_dir=base_dir, context=8192, given=("Mine.",), quick=True, check=lambda: None
    )
    assert data.instructions == ()
    parts = [example for part in data.parts.values() for example in parse_chat(part)]
    assert {example.messages[0].content for example in parts} == set(texts)
