"""The examples that the base is shown, and the schema that it is told, as far as there is room."""

from __future__ import annotations

import json

import pytest

from tests.unit.trainer.evaluate.worlds import seeded
from trainer.evaluate.arms import TEMPLATE_TOKENS, ChatMessage, Prompt, Question, answer_list
from trainer.evaluate.base_prompts import (
    CLOSED_SET_EXAMPLES,
    EXAMPLES,
    JSON_ONLY,
    NO_ROOM_FOR_EXAMPLES,
    NO_ROOM_FOR_SCHEMA,
    NO_TRAINING_DATA,
    BasePrompts,
    base_prompts,
    example_pool,
    inferred_schema,
    json_instructions,
    passage_tokens,
    with_nearest_examples,
)
from trainer.evaluate.metrics.structure import JsonExact
from trainer.evaluate.spec import MetricOptions

THINGS = ("kettle", "jacket", "shovel", "scarf", "toaster", "lantern", "anchor", "barrel")
WORDS = ("blue", "broken", "late", "lost", "small", "heavy", "second", "wrong", "new", "old")


def count(text: str) -> int:
    return len(text.split())


def question(text: str, reference: str = "a", number: int = 0, system: str | None = None) -> Question:
    first = () if system is None else (ChatMessage(role="system", content=system),)
    return Question(id=str(number), turns=(*first, ChatMessage(role="user", content=text)), reference=reference)


def many(size: int, seed: int = 0, system: str | None = None) -> tuple[Question, ...]:
    """Questions of a few words about a thing, which is the answer."""
    chance, found = seeded(seed), []
    for number in range(size):
        thing = THINGS[number % len(THINGS)]
        words = " ".join(chance.choice(WORDS, 4))
        found.append(question(f"the {thing} that is {words} and number {number + 1000 * seed}", thing, number, system))
    return tuple(found)


def prompts(questions: tuple[Question, ...], trained: tuple[Question, ...], **changes: object) -> BasePrompts:
    options: dict[str, object] = {
        "metric": MetricOptions(name="exact_match"),
        "answers": (),
        "wanted": 3,
        "for_bases": True,
        "room": 10_000,
    }
    return base_prompts(questions, trained, questions, count=count, **options | changes)  # type: ignore[arg-type]


def test_the_most_similar_examples_stand_before_the_question_the_nearest_last() -> None:
    asked = question("Where is my blue kettle?")
    trained = (
        question("Do you sell rope?", "no", 1),
        question("Where is my kettle?", "here", 2, system="Be kind."),
        question("Where is my jacket?", "there", 3),
        question("An anchor, please.", "no", 4),
    )
    found = prompts((asked,), trained, wanted=2)
    assert (found.examples, found.notes) == (2, ())
    messages = Prompt(system="Be brief.", examples=2).messages(found.questions[0])
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be brief."),
        ("user", "Where is my jacket?"),
        ("assistant", "there"),
        ("user", "Where is my kettle?"),
        ("assistant", "here"),
        ("user", "Where is my blue kettle?"),
    ]
    assert Prompt(system="Be brief.").messages(found.questions[0]) == Prompt(system="Be brief.").messages(asked)
    assert prompts((asked,), trained, wanted=2) == found
    assert Question.model_validate_json(found.questions[0].model_dump_json(exclude_defaults=True)) == found.questions[0]


def test_of_a_conversation_all_turns_are_shown() -> None:
    turns = tuple(ChatMessage(role=role, content=role) for role in ("system", "user", "assistant", "user"))
    found = prompts((question("user?"),), (Question(id="1", turns=turns, reference="done"),) * 2, wanted=1)
    (example,) = found.questions[0].examples
    assert [turn.content for turn in example] == ["user", "assistant", "user", "done"]


def test_no_held_out_example_and_no_near_duplicate_of_one_is_ever_shown() -> None:
    held_out = many(40, seed=1)
    asked = held_out[:10]
    texts = [each.last_message for each in held_out]
    copies = tuple(question(text, "copied", number) for number, text in enumerate(texts))
    near = tuple(question(f"{text.upper()}!", "copied", number) for number, text in enumerate(texts))
    other_system = tuple(question(text, "copied", number, system="Hm.") for number, text in enumerate(texts))
    honest = many(20)
    trained = (*copies, *honest, *near, *other_system)
    pool = example_pool(trained, held_out, wanted=8, room=10_000, count=count)
    assert pool.examples == honest
    shown = [example[-1].content for each in with_nearest_examples(asked, pool) for example in each.examples]
    assert len(shown) == 80
    assert "copied" not in shown
    # with nothing else to show, nothing is shown
    assert example_pool(copies + near, held_out, wanted=8, room=10_000, count=count).count == 0


def test_the_same_example_is_not_shown_twice() -> None:
    trained = (question("Where is my kettle?", "here", 1), question("where is  my kettle?", "Here", 2))
    assert prompts((question("Where is a blue jacket?"),), trained, wanted=2).examples == 1


@pytest.mark.parametrize("room", [0, 40, 100, 200, 400, 1000])
@pytest.mark.parametrize("answers", [(), tuple(sorted(THINGS))])
def test_whatever_is_shown_fits_and_what_is_missing_is_said(room: int, answers: tuple[str, ...]) -> None:
    long = question("word " * 300, "long", 999)
    asked, trained = many(30, seed=1), (*many(60), long)
    found = prompts(asked, trained, wanted=8, room=room, answers=answers)
    for each in found.questions:
        contents = [turn.content for example in each.examples for turn in example]
        told = count(answer_list(answers)) + TEMPLATE_TOKENS if answers else 0
        assert not contents or sum(map(count, contents)) + len(contents) * TEMPLATE_TOKENS + told <= room
        assert len(each.examples) == found.examples
    assert found.notes if found.examples < 8 else not found.notes
    assert (NO_ROOM_FOR_EXAMPLES in found.notes) == (found.examples == 0)
    if room == 1000:
        assert found.examples == 8, "one long example must not take the others away"


def test_without_training_data_the_report_says_so_and_what_questions_bring_along_is_shown() -> None:
    asked = many(4, seed=1)
    bare = prompts(asked, ())
    assert (bare.examples, bare.questions, bare.notes) == (0, asked, (NO_TRAINING_DATA,))
    stored = prompts(asked, many(20)).questions
    for for_bases, trained in ((True, ()), (False, ()), (False, many(20, seed=2))):
        again = prompts(stored, trained, for_bases=for_bases)
        assert (again.examples, again.questions) == (3, stored)
    own = prompts(stored, many(20, seed=2))
    assert own.questions != stored, "a client's file cannot choose the base's examples if there are others"
    tight = prompts(stored, (), room=110)
    assert 0 < tight.examples < 3
    assert (prompts(asked, (), wanted=0).notes, prompts(asked, many(9), wanted=0).questions) == ((), asked)


def test_json_answers_are_described_by_their_keys_and_types() -> None:
    values = [
        {"kind": ("refund", "order")[at % 2], "sum": at + 0.5 * (at % 2), "lines": [{"id": at}], "note": f"n{at}"}
        for at in range(12)
    ]
    del values[3]["note"]
    assert inferred_schema(values) == {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["order", "refund"]},
            "sum": {"type": "number"},
            "lines": {
                "type": "array",
                "items": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
            },
            "note": {"type": "string"},
        },
        "required": ["kind", "sum", "lines"],
    }
    assert inferred_schema([True, None]) == {"type": ["boolean", "null"]}
    assert inferred_schema([{f"key{at}": at} for at in range(99)]) == {"type": "object"}
    assert inferred_schema([[]]) == {"type": "array"}
    for value in values:
        assert JsonExact(inferred_schema(values)).score(json.dumps(value), json.dumps(value)) == 1


def test_the_base_is_told_the_schema_that_is_given_or_the_one_that_the_answers_have() -> None:
    asked = tuple(question(f"order {at}", json.dumps({"order": at}), at) for at in range(5))
    metric = MetricOptions(name="json_exact")
    found = prompts(asked, asked[:0], metric=metric).instructions
    assert found is not None
    assert found.startswith(JSON_ONLY)
    assert found.endswith('{"type":"object","properties":{"order":{"type":"integer"}},"required":["order"]}')
    given = metric.model_copy(update={"schema_": {"type": "object", "maxProperties": 1}})
    assert str(prompts(asked, (), metric=given).instructions).endswith('{"type":"object","maxProperties":1}')
    tight = prompts(asked, (), metric=metric, room=15, wanted=0)
    assert (tight.instructions, tight.notes) == (JSON_ONLY, (NO_ROOM_FOR_SCHEMA,))
    assert json_instructions(["not JSON"]) == JSON_ONLY
    assert prompts(asked, (), metric=metric, for_bases=False).instructions is None
    assert prompts(asked, ()).instructions is None


def test_passages_keep_their_room() -> None:
    assert passage_tokens(None, 2048) == 0
    assert passage_tokens({"max_passage_tokens": 700}, 2048) == 700
    assert passage_tokens({"max_passage_tokens": None}, 2048) == 1024
    assert CLOSED_SET_EXAMPLES > EXAMPLES > 0
