"""Answers that conversations teach on the way to their last one: they are trained on, so they are not held out."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

import pytest

from trainer.data import trained_examples
from trainer.data.findings import overlap
from trainer.data.format import Example, Message
from trainer.data.split import question, split
from trainer.data.trained_examples import NormalizedExample, TrainedExamples


def sentence(seed: str) -> str:
    random = Random(seed)
    return " ".join("".join(random.choices(ascii_lowercase, k=6)) for _ in range(8))


def conversation(line: int, *turns: str, weightless: bool = False, group: str | None = None) -> Example:
    """User and assistant take turns; ``weightless``: only the last answer is trained."""
    messages = [
        Message(
            "assistant" if at % 2 else "user", text, trained=at % 2 == 1 and not (weightless and at < len(turns) - 1)
        )
        for at, text in enumerate(turns)
    ]
    return Example(line, tuple(messages), group=group)


def two_turns(count: int, *, weightless: bool = False) -> list[Example]:
    return [
        conversation(line, *(sentence(f"{part}{line}") for part in ("q", "a", "q2 ", "a2 ")), weightless=weightless)
        for line in range(1, count + 1)
    ]


def first_turns(count: int) -> list[Example]:
    return [conversation(line, sentence(f"q{line}"), sentence(f"a{line}")) for line in range(1, count + 1)]


def unrolled(conversations: int, turns: int, opening: str | None = None) -> list[Example]:
    """Line k of a conversation is its first k turns."""
    lines: list[Example] = []
    for number in range(conversations):
        texts: list[str] = []
        for turn in range(turns):
            asked = opening if opening is not None and turn == 0 else sentence(f"u{number}.{turn}")
            texts += [asked, "Hello!" if asked == opening else sentence(f"b{number}.{turn}")]
            lines.append(conversation(len(lines) + 1, *texts))
    return lines


def taught(examples: list[Example]) -> set[tuple[str, ...]]:
    return {
        tuple(message.text for message in example.messages[: at + 1])
        for example in examples
        for at, message in enumerate(example.messages)
        if message.trained
    }


def test_a_held_out_first_turn_of_a_trained_conversation_is_refused() -> None:
    found = overlap(two_turns(140), first_turns(140))
    assert [(finding.code, finding.severity, finding.count) for finding in found.findings] == [
        ("held_out_in_training", "refused", 140)
    ]
    misspelt = [conversation(example.line, example.messages[0].text + "s", "a") for example in first_turns(140)]
    assert len(overlap(two_turns(140), misspelt).left_out) == 140


def test_answers_without_weight_are_context_and_not_taught() -> None:
    assert overlap(two_turns(140, weightless=True), first_turns(140)).findings == []


def test_no_line_of_an_unrolled_conversation_is_held_out_of_one_that_teaches_it() -> None:
    lines = unrolled(60, 3)
    parts = split(lines)
    training = taught([lines[index] for index in parts.training])
    held_out = [lines[index] for index in parts.held_out]
    assert len(held_out) == 18
    assert not training & {tuple(message.text for message in each.messages) for each in held_out}


def test_a_greeting_that_opens_every_conversation_joins_none_and_is_not_held_out() -> None:
    lines = unrolled(60, 3, opening="Hi")
    parts = split(lines)
    assert len(parts.held_out) >= 10
    assert all(question(lines[index]) != "Hi" for index in parts.held_out)


def test_what_a_job_held_out_is_not_taught_on_the_way_either() -> None:
    lines = two_turns(20)
    trained = TrainedExamples(map(NormalizedExample.trained, lines), common=True)
    asked = [NormalizedExample.example(example) for example in first_turns(20)]
    assert len(trained.leaks(asked)) == 20
    trained.remove([NormalizedExample.example(example) for example in lines[:5]])
    assert [leak.index for leak in trained.leaks(asked)] == list(range(5, 20))


def test_beyond_the_bound_on_memory_the_same_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_examples, "MAX_EARLIER_CHARS", 500)
    assert len(overlap(two_turns(140), first_turns(140)).left_out) == 140
