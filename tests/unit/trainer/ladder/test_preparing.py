"""Dividing the data of a ladder: three parts that share no near-duplicate, each with its own lines of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.data.format import parse_chat
from trainer.data.report import Report
from trainer.data.similar import groups
from trainer.data.split import question
from trainer.errors import DataInvalid, DataTooSmall
from trainer.evaluate.arms import ANSWER_FORM_TOKENS, max_answer_tokens
from trainer.ladder.parts import (
    MIN_QUICK_HELD_OUT,
    MIN_QUICK_TRAINING,
    QUICK_HELD_OUT,
    QUICK_TRAINING,
    faults,
    groups_of,
    learning_subsets,
    limits_of,
)
from trainer.ladder.preparing import PreparedData, example_settings, prepare_data

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
    longest_answer = data.max_tokens - ANSWER_FORM_TOKENS
    assert data.teacher_max_tokens == max_answer_tokens(longest_answer, 8192) > data.max_tokens
    shown = example_settings(data.shown)
    assert sorted(pair["assistant"] for pair in shown) == sorted(VERBS)
    held_out = {question(example) for example in parse_chat(data.parts["held_out"])}
    assert not held_out & {pair["user"] for pair in shown}


def customers_data(base: Path, everyones: int) -> PreparedData:
    """Of tickets of seven customers, the first ``everyones`` lines of which belong to nobody in particular."""
    rows = [json.loads(line) for line in content(160).splitlines()]
    for number, row in enumerate(rows):
        customer = "*" if number < everyones else f"c-{number % 7}"
        row["messages"][-1]["content"] = f"Ticket {number} of {customer}: we will look at it and write to you soon."
        row["filters"] = {"customer": customer, "region": "*"}
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return prepare_data("f.jsonl", text, base_dir=base, context=8192, given=(), quick=True, check=lambda: None)


def test_every_customer_is_shown_only_what_is_everyones(base_dir: Path) -> None:
    data = customers_data(base_dir, 60)
    assert data.required_filters == ("customer", "region")
    assert {example.filters["customer"] for example in data.shown} == {"*"}
    assert "This is how answers sound" in data.instructions[-1]
    assert "of c-" not in "".join(data.instructions)


def test_one_customers_examples_are_shown_to_nobody_else(base_dir: Path) -> None:
    data = customers_data(base_dir, 0)
    assert data.shown == ()
    assert data.why_none_shown.endswith(
        'give those that anyone may see the value "*" in `filters` for `customer` and `region`'
    )
    assert "of c-" not in "".join(data.instructions)


def test_a_ladder_needs_the_attribute_group_for_itself(base_dir: Path) -> None:
    rows = [json.loads(line) for line in content(160).splitlines()]
    rows[4]["filters"] = {"group": "c-1"}
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with pytest.raises(DataInvalid, match=r"^line 5: `filters` has `group`"):
        prepare_data("f.jsonl", text, base_dir=base_dir, context=8192, given=(), quick=True, check=lambda: None)


def test_quick_asks_fewer_questions_and_learns_from_fewer_examples(base_dir: Path) -> None:
    data = prepared(base_dir, 800, quick=True)
    assert data.counts["held_out"] <= QUICK_HELD_OUT
    assert data.counts["training"] == QUICK_TRAINING
    assert any("quick" in note for note in data.notes)


@pytest.mark.parametrize(
    ("sentences", "held_out", "choosing", "training"),
    [(1, QUICK_HELD_OUT, 40, QUICK_TRAINING), (8, 60, 30, 600), (20, MIN_QUICK_HELD_OUT, 24, 294)],
)
def test_quick_takes_fewer_examples_where_they_are_long(
    sentences: int, held_out: int, choosing: int, training: int
) -> None:
    row = {"messages": [{"role": "user", "content": "?" * 9}, {"role": "assistant", "content": "a" * 25 * sentences}]}
    examples = parse_chat((json.dumps(row) + "\n").encode() * 3)
    limits = limits_of(examples, quick=True)
    assert (limits.held_out, limits.choosing, limits.training) == (held_out, choosing, training)
    assert limits.held_out >= MIN_QUICK_HELD_OUT
    assert (limits.training or 0) >= MIN_QUICK_TRAINING
    assert limits_of(examples, quick=False).training is None


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


def test_other_formats_lose_a_shared_system_message_too_and_keep_what_is_not_trained_on(base_dir: Path) -> None:
    rows = []
    for line in content(120).splitlines():
        asked, answered = (message["content"] for message in json.loads(line)["messages"])
        turns = [{"from": "human", "value": "Hello!"}, {"from": "gpt", "value": "Hello.", "weight": 0}]
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
        rows.append(json.dumps({"conversations": [{"from": "system", "value": "Be brief."}, *turns]}) + "\n")
    data = prepare_data(
        *("f.jsonl", "".join(rows).encode()),
        **{"base_dir": base_dir, "context": 8192, "given": (), "quick": True, "check": lambda: None},
    )
    assert data.instructions[0] == "Be brief."
    parts = [example for part in data.parts.values() for example in parse_chat(part)]
    assert all(message.role != "system" for example in parts for message in example.messages)
    assert {(message.content, message.trained) for example in parts for message in example.messages[:2]} == {
        ("Hello!", False),
        ("Hello.", False),
    }


def test_near_duplicates_with_groups_of_their_own_are_one_group() -> None:
    lines = [json.loads(line) for line in content(3).splitlines()]
    twin = json.loads(json.dumps(lines[0]))
    twin["messages"][0]["content"] += "!"
    rows = [lines[0] | {"group": "c1"}, twin | {"group": "c2"}, lines[1] | {"group": "c2"}, lines[2]]
    examples = parse_chat("".join(json.dumps(row) + "\n" for row in rows).encode())
    assert groups_of(examples) == {1: "c1", 2: "c1", 3: "c1", 4: "alike-4"}


def test_system_messages_that_differ_leave_no_instructions_to_try(base_dir: Path) -> None:
    texts = ("Be brief.", "Be kind.")
    data = prepare_data(
        "f.jsonl", with_system(texts), base_dir=base_dir, context=8192, given=("Mine.",), quick=True, check=lambda: None
    )
    assert data.instructions == ()
    parts = [example for part in data.parts.values() for example in parse_chat(part)]
    assert {example.messages[0].content for example in parts} == set(texts)


@pytest.mark.parametrize("quick", [False, True])
def test_a_quick_ladder_lets_no_answer_of_free_text_go_on_for_twice_the_longest(base_dir: Path, quick: bool) -> None:
    rows = []
    for row in map(json.loads, content(320).splitlines()):
        asked = row["messages"][0]["content"]
        row["messages"][1]["content"] = (
            f"We are sorry to hear that. {asked} Send us a photograph of it, and we will see."
        )
        rows.append(json.dumps(row))
    data = prepare_data(
        *("examples.jsonl", "\n".join(rows).encode()),
        base_dir=base_dir,
        context=8192,
        given=(),
        quick=quick,
        check=lambda: None,
    )
    assert data.metric == {"name": "similarity"}
    longest = (data.teacher_max_tokens - ANSWER_FORM_TOKENS) // 2
    assert data.max_tokens == (1 if quick else 2) * longest + ANSWER_FORM_TOKENS
