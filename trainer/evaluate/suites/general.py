"""The items of the suite `general`, and what one arm makes of them, by log-probabilities alone and without a network.

A multiple-choice item is answered by the likeliest choice: the one whose tokens have the highest log-probability per
byte (the length-normalised accuracy of EleutherAI's lm-evaluation-harness). The choices continue a plain text, or they
are replies to a question in a chat, which the engine renders with its template.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Arm, ChatMessage, Question
from trainer.evaluate.asking import OnProgress
from trainer.evaluate.likelihood import ReplyBatch, Scorer, TextBatch, TokenLogprobs, common_prefix
from trainer.runs.protocol import Frozen

GENERAL: Final = "general.jsonl"
ITEMS_PER_REQUEST: Final = 8
"""Items scored in one request: fewer round trips, and still short steps for callers' requests beside it."""
MIN_ITEMS: Final = 20


class _Choices(Frozen):
    """``choices``: one of them is right; ``answer``: its index, from 0."""

    id: str
    area: str
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if self.answer >= len(self.choices) or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"{self.id}: `answer` must be the index of a choice, and the choices must be unique")
        if any(all(other.startswith(choice) for other in self.choices) for choice in self.choices):
            raise ValueError(f"{self.id}: no choice may be the beginning of all others")
        return self


class ChoiceItem(_Choices):
    """A stem and its continuations."""

    kind: Literal["choice"]
    stem: str = Field(min_length=1)


class ChatItem(_Choices):
    """A question, and replies to it."""

    kind: Literal["chat"]
    question: str = Field(min_length=1)


class TextItem(Frozen):
    """A neutral text; ``area`` is its register."""

    kind: Literal["text"]
    id: str
    area: str
    text: str = Field(min_length=1)

    @property
    def shuffled(self) -> str:
        """The same words in a random order, which is the same every time."""
        words = self.text.split()
        random.Random(self.id).shuffle(words)  # noqa: S311 - no secret
        return " ".join(words)


Item = Annotated[ChoiceItem | ChatItem | TextItem, Field(discriminator="kind")]
_ITEM: Final[TypeAdapter[ChoiceItem | ChatItem | TextItem]] = TypeAdapter(Item)


class SuiteItems(Frozen):
    """A suite's items: multiple choice in plain text, multiple choice in a chat, and texts."""

    name: str
    choices: tuple[ChoiceItem, ...]
    chats: tuple[ChatItem, ...] = ()
    texts: tuple[TextItem, ...]

    @property
    def multiple_choice(self) -> tuple[ChoiceItem | ChatItem, ...]:
        """All items with choices: first those in plain text, then those in a chat."""
        return (*self.choices, *self.chats)

    def limited(self, count: int | None) -> SuiteItems:
        """The suite with ``count`` multiple-choice items, evenly spread over its areas; all of them for None."""
        items = self.multiple_choice
        if count is None or count >= len(items):
            return self
        chosen = [items[number * len(items) // count] for number in range(count)]
        return self.model_copy(
            update={
                "choices": tuple(item for item in chosen if isinstance(item, ChoiceItem)),
                "chats": tuple(item for item in chosen if isinstance(item, ChatItem)),
            }
        )


def chance_of(items: Sequence[ChoiceItem | ChatItem]) -> float:
    """The expected accuracy of guessing."""
    return float(np.mean([1 / len(item.choices) for item in items]))


def read_suite(name: str, content: str) -> SuiteItems:
    """Parse a suite from JSON lines.

    Raises:
        EvaluationInvalid: A line is invalid, an id is not unique, or there are too few items of a kind.
    """
    items: list[ChoiceItem | ChatItem | TextItem] = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            items.append(_ITEM.validate_python(json.loads(line)))
        except (ValidationError, ValueError) as error:
            raise EvaluationInvalid(f"suite {name}, line {number}: not a valid item: {error}") from error
    if len({item.id for item in items}) != len(items):
        raise EvaluationInvalid(f"suite {name}: the ids must be unique")
    choices = tuple(item for item in items if isinstance(item, ChoiceItem))
    texts = tuple(item for item in items if isinstance(item, TextItem))
    if not choices or len(texts) < 2:
        raise EvaluationInvalid(f"suite {name} needs at least one multiple-choice item in plain text and two texts")
    chats = tuple(item for item in items if isinstance(item, ChatItem))
    return SuiteItems(name=name, choices=choices, chats=chats, texts=texts)


def general_suite() -> SuiteItems:
    """The suite that ships with this package."""
    return read_suite("general", (files("trainer.evaluate.suites") / GENERAL).read_text("utf-8"))


class SuiteMeasurement(Frozen):
    """One arm on a suite, in the suite's order.

    Attributes:
        right: Whether each item in plain text was answered right.
        chat_right: The same for items in a chat.
        nats: Of each text, the mean nats per token.
        shuffled_nats: The same for the texts with their words shuffled; empty if that was not measured.
    """

    label: str
    suite: str
    right: tuple[bool, ...]
    chat_right: tuple[bool, ...] = ()
    nats: tuple[float, ...]
    shuffled_nats: tuple[float, ...] = ()


async def measure(
    arm: Arm,
    suite: SuiteItems,
    scorer: Scorer,
    on_progress: OnProgress | None = None,
    *,
    shuffled: bool = False,
) -> SuiteMeasurement:
    """Run the suite on an arm.

    Plain texts are scored without the arm's prompt: they measure the weights. Chats carry it, as a caller's do.

    Args:
        arm: At the gateway.
        suite: The items.
        scorer: Returns the log-probabilities.
        on_progress: Called with the number of requests that were answered, and of all.
        shuffled: Also measure the texts with their words shuffled.
    """
    texts = [item.text for item in suite.texts] + [item.shuffled for item in suite.texts if shuffled]
    continuations = [f"{item.stem} {choice}" for item in suite.choices for choice in item.choices]
    batches = [*_batches(f"{suite.name}/choices", continuations), *_batches(f"{suite.name}/texts", texts)]
    chats = [ReplyBatch(f"{suite.name}/{item.id}", _question(item.question), item.choices) for item in suite.chats]

    def progress(before: int) -> OnProgress | None:
        if on_progress is None:
            return None
        return lambda done, _: on_progress(before + done, len(batches) + len(chats))

    plain_rows = iter([row for rows in await scorer.texts(arm, batches, progress(0)) for row in rows])
    right = tuple(
        likeliest(item.choices, [next(plain_rows) for _ in item.choices]) == item.answer for item in suite.choices
    )
    nats = [row.nats for row in plain_rows]
    replies = await scorer.replies(arm, chats, progress(len(batches)))
    return SuiteMeasurement(
        label=arm.label,
        suite=suite.name,
        right=right,
        chat_right=tuple(
            likeliest(item.choices, rows) == item.answer for item, rows in zip(suite.chats, replies, strict=True)
        ),
        nats=tuple(nats[: len(suite.texts)]),
        shuffled_nats=tuple(nats[len(suite.texts) :]),
    )


def likeliest(choices: Sequence[str], rows: Sequence[TokenLogprobs]) -> int:
    """The index of the choice with the highest log-probability per byte.

    Tokens that all rows begin with are left out: they are the stem or the prompt, and equally likely in all rows.

    Args:
        choices: The choices' texts.
        rows: Of each choice, the tokens of the whole text that ends with it.
    """
    shared = common_prefix(*(row.tokens for row in rows))
    return int(
        np.argmax(
            [sum(row.logprobs[shared:]) / len(choice.encode()) for choice, row in zip(choices, rows, strict=True)]
        )
    )


def _question(text: str) -> Question:
    return Question(id="", turns=(ChatMessage(role="user", content=text),), reference="")


def _batches(name: str, texts: Sequence[str]) -> list[TextBatch]:
    size = 4 * ITEMS_PER_REQUEST
    return [TextBatch(f"{name}/{start}", tuple(texts[start : start + size])) for start in range(0, len(texts), size)]
