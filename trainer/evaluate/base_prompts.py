"""What the base is given besides its system prompt: the most similar training examples, and what JSON must look like.

The examples before a question are its nearest neighbours among the training examples (retrieved demonstrations: Liu et
al., "What Makes Good In-Context Examples for GPT-3?", DeeLIO 2022), by the similarity that also finds near-duplicates
(`trainer.data.similar`). Held-out examples and near-duplicates of them are never shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from adapters.protocol.requests import MAX_PROMPT_CHARS
from trainer.data.findings import CLOSED_REPEATS
from trainer.data.shingles import ShingleSets
from trainer.data.similar import NearDuplicates, normalise
from trainer.evaluate.arms import TEMPLATE_TOKENS, Conversation, Question, answer_list
from trainer.evaluate.metrics.structure import NOT_JSON, parsed
from trainer.evaluate.spec import MetricOptions

EXAMPLES: Final = 3
CLOSED_SET_EXAMPLES: Final = 8
"""For a closed set of answers: the examples are short, and the nearest few should hold every label in question."""
POOL_SHARES: Final = (1.0, 0.9, 0.5)
"""Shares of the examples, the shortest first, from which they are chosen if longer ones do not fit."""
LONGEST_COUNTED: Final = 3
"""Number of the longest texts (in characters) whose tokens are counted."""
JSON_ONLY: Final = "Answer with JSON only, without any other text and without a code fence."
SCHEMA_INTRO: Final = "The JSON must satisfy this JSON Schema:"
MAX_PROPERTIES: Final = 64
"""An object with more different keys is taken for a table whose keys are data."""
MAX_ENUM: Final = 32
MAX_DEPTH: Final = 8
NO_ROOM_FOR_SCHEMA: Final = (
    "the schema of the answers does not fit into the context with the longest question, so the base is asked for JSON "
    "without it"
)
NO_TRAINING_DATA: Final = "the version's training examples are not available, so no arm is shown any"
FEWER_EXAMPLES: Final = (
    "before each question {number} training examples are shown: {wanted} do not fit into the context beside it"
)
NO_UNSEEN_EXAMPLES: Final = (
    "every training example is a near-duplicate of a held-out one, so no arm is shown any training example"
)
NO_ROOM_FOR_EXAMPLES: Final = (
    "not one training example fits into the context with the longest question and an answer, so no arm is shown any"
)
_TYPES: Final = {
    **{dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"},
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class BasePrompts:
    """What the base's prompts hold besides the system prompt and a list of answers.

    Attributes:
        questions: The questions, each with its examples.
        examples: How many examples every arm can be shown.
        instructions: How to answer with JSON, if the answers are JSON.
        notes: What is missing for lack of room or data, for the report: each a sentence without the full stop.
    """

    questions: tuple[Question, ...]
    examples: int = 0
    instructions: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExamplePool:
    """Training examples to choose from, in the order of their file; ``count``: how many to show before a question."""

    examples: tuple[Question, ...]
    count: int


def longest(texts: Iterable[str], count: Callable[[str], int]) -> int:
    """The length of the longest text in tokens; 0 without texts. Counts the LONGEST_COUNTED longest in characters."""
    by_length = sorted(set(texts), key=lambda text: (-len(text), text))
    return max((count(text) for text in by_length[:LONGEST_COUNTED]), default=0)


def wanted_examples(answers: Sequence[str]) -> int:
    """How many examples the base is shown; ``answers``: the closed set, or empty."""
    return CLOSED_SET_EXAMPLES if answers else EXAMPLES


def passage_tokens(grounding: Mapping[str, Any] | None, context: int) -> int:
    """The tokens to leave for passages: what the version's grounding says, or else half of the context."""
    return int(grounding.get("max_passage_tokens") or context // 2) if grounding else 0


def base_prompts(
    questions: Sequence[Question],
    trained_on: Sequence[Question],
    held_out: Sequence[Question],
    *,
    metric: MetricOptions,
    answers: Sequence[str],
    wanted: int,
    for_bases: bool,
    room: int,
    count: Callable[[str], int],
) -> BasePrompts:
    """Fix what the base is given, as far as the context has room for it.

    Args:
        questions: The questions to ask; some of the held-out ones.
        trained_on: The candidate's training examples; empty if they are not available.
        held_out: All held-out questions.
        metric: The primary metric.
        answers: The closed set that the base's prompt lists, or empty.
        wanted: How many training examples to show before each question.
        for_bases: Whether they are for the base at its best; otherwise, for a client's own arms: then examples that the
            questions already have take precedence, so that an evaluation can be repeated.
        room: The tokens that the longest question, its system message and an answer leave of the context.
        count: Returns a text's length in tokens.
    """
    instructions: str | None = None
    notes: list[str] = []
    calls_tools = any(question.reference_calls for question in (*questions, *trained_on))
    # the tools that a request declares tell the base what to call; JSON in its text would be no call
    if for_bases and metric.name.startswith("json_") and not answers and not calls_tools:
        references = [question.reference for question in (trained_on or held_out)]
        instructions = json_instructions(references, metric.schema_)
        if len(instructions) > MAX_PROMPT_CHARS or count(instructions) + TEMPLATE_TOKENS > room:
            instructions = JSON_ONLY
            notes.append(NO_ROOM_FOR_SCHEMA)
    told = "\n".join([*([answer_list(answers)] if answers else []), *([instructions] if instructions else [])])
    room -= count(told) + TEMPLATE_TOKENS if told else 0
    has_examples = all(question.examples for question in questions)
    if wanted and has_examples and not (for_bases and trained_on):
        prompted, number = tuple(questions), _stored_examples(questions, wanted, room, count)
        available = wanted
    else:
        pool = example_pool(trained_on, held_out, wanted=wanted, room=room, count=count)
        prompted, number, available = with_nearest_examples(questions, pool), pool.count, len(pool.examples)
        if wanted and not available:
            notes.append(NO_UNSEEN_EXAMPLES if trained_on else NO_TRAINING_DATA)
    if number < min(wanted, available):
        notes.append(FEWER_EXAMPLES.format(number=number, wanted=wanted) if number else NO_ROOM_FOR_EXAMPLES)
    return BasePrompts(prompted, number, instructions, tuple(notes))


# examples


def example_pool(
    trained_on: Sequence[Question],
    held_out: Sequence[Question],
    *,
    wanted: int,
    room: int,
    count: Callable[[str], int],
) -> ExamplePool:
    """The training examples that may be shown, and how many of them fit.

    Args:
        trained_on: The candidate's training examples.
        held_out: All held-out examples, asked or not: neither they nor near-duplicates of them are in the result.
        wanted: How many examples to show before each question.
        room: The tokens that the longest question, its system message and its answer leave of the context.
        count: Returns a text's length in tokens.

    Returns:
        ``count`` is 0 if not one fits; without any example that may be shown, there are none in the result. Any
        ``count`` of the examples fit into ``room``.
    """
    pool = _unseen(trained_on, held_out)
    if not pool or wanted == 0:
        return ExamplePool((), 0)
    by_length = sorted(range(len(pool)), key=lambda index: len(_text(pool[index])))
    shown, fits = pool, 0
    for share in POOL_SHARES:
        shown = [pool[index] for index in sorted(by_length[: math.ceil(share * len(pool))])]
        turns = max(len(question.turns) + 1 for question in shown)
        fits = max(0, room) // (longest((_text(question) for question in shown), count) + turns * TEMPLATE_TOKENS)
        if fits >= wanted:
            break
    return ExamplePool(tuple(shown), min(wanted, fits, len(shown)))


def with_nearest_examples(questions: Sequence[Question], pool: ExamplePool) -> tuple[Question, ...]:
    """The questions, each with the ``pool.count`` most similar examples, the nearest first.

    If two are equally similar, the one that comes first in the file is nearer. Unchanged if the count is 0.
    """
    if pool.count == 0:
        return tuple(questions)
    sets = ShingleSets([normalise(question.text) for question in (*pool.examples, *questions)])
    size = len(pool.examples)
    indices = np.arange(size)
    chosen = []
    for position, question in enumerate(questions):
        order = np.argsort(-sets.jaccard(size + position, indices), kind="stable")[: pool.count]
        examples = tuple(_conversation(pool.examples[index]) for index in order.tolist())
        chosen.append(question.model_copy(update={"examples": examples}))
    return tuple(chosen)


def _stored_examples(questions: Sequence[Question], wanted: int, room: int, count: Callable[[str], int]) -> int:
    """How many of the examples that all questions have fit into ``room``, and at most ``wanted``."""
    number = min(wanted, *(len(question.examples) for question in questions))
    while number:
        shown = [[turn.text for each in question.examples[:number] for turn in each] for question in questions]
        turns = max(len(contents) for contents in shown)
        if longest(("\n".join(contents) for contents in shown), count) + turns * TEMPLATE_TOKENS <= room:
            break
        number -= 1
    return number


def _unseen(trained_on: Sequence[Question], held_out: Sequence[Question]) -> list[Question]:
    """The different training examples whose questions are not near-duplicates of any held-out question."""
    by_text: dict[tuple[str, str], Question] = {}
    for example in trained_on:
        by_text.setdefault((normalise(example.text), normalise(example.reference)), example)
    unique = list(by_text.values())
    if not unique or not held_out:
        return unique
    texts, held_out_texts = ([question.text for question in each] for each in (unique, held_out))
    matches = NearDuplicates(held_out_texts, among=[*texts, *held_out_texts]).of(texts)
    return [question for question, found in zip(unique, matches, strict=True) if not (found.same or found.similar)]


def _conversation(example: Question) -> Conversation:
    turns = tuple(turn for turn in example.turns if turn.role != "system")
    return (*turns, example.answer)


def _text(example: Question) -> str:
    return f"{example.text}\n{example.reference}"


# JSON


def json_instructions(references: Sequence[str], schema: Mapping[str, Any] | None = None) -> str:
    """Instructions to answer with JSON that satisfies ``schema``, or else the schema that the references have."""
    if schema is None:
        values = [value for value in map(parsed, references) if value is not NOT_JSON]
        schema = inferred_schema(values) if values else None
    if schema is None:
        return JSON_ONLY
    return f"{JSON_ONLY} {SCHEMA_INTRO}\n{json.dumps(schema, ensure_ascii=False, separators=(',', ':'))}"


def inferred_schema(values: Sequence[object], depth: int = 0) -> dict[str, Any]:
    """A JSON Schema that all values satisfy: types, keys, the keys that are always there, and closed sets of strings.

    Args:
        values: Parsed JSON.
        depth: How deep the values are nested; below MAX_DEPTH anything is allowed.
    """
    kinds = {_TYPES[type(value)] for value in values}
    if not kinds or depth == MAX_DEPTH:
        return {}
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    strings = [value for value in values if isinstance(value, str)]
    kinds -= {"integer"} if "number" in kinds else set()
    schema: dict[str, Any] = {"type": kinds.copy().pop() if len(kinds) == 1 else sorted(kinds)}
    keys = list(dict.fromkeys(key for value in objects for key in value))
    if 0 < len(keys) <= MAX_PROPERTIES:
        of_key = {key: [value[key] for value in objects if key in value] for key in keys}
        schema["properties"] = {key: inferred_schema(found, depth + 1) for key, found in of_key.items()}
        schema["required"] = [key for key, found in of_key.items() if len(found) == len(objects)]
    if items := [entry for value in lists for entry in value]:
        schema["items"] = inferred_schema(items, depth + 1)
    distinct = sorted(set(strings))
    if len(strings) == len(values) and len(distinct) <= MAX_ENUM and len(strings) >= CLOSED_REPEATS * len(distinct):
        schema["enum"] = distinct
    return schema
