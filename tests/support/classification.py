"""A classification data set that a small model learns in a minute: messages to a shop, each labelled with a desk.

The thing that a message is about decides its label. The labels mean nothing, so that nobody can guess them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

THINGS_BY_LABEL = {
    "desk-amber": ("kettle", "toaster", "oven", "fridge", "blender", "freezer"),
    "desk-cobalt": ("jacket", "scarf", "shirt", "glove", "sweater", "sock"),
    "desk-olive": ("rake", "shovel", "hedge", "lawn", "seed", "flowerpot"),
}
MESSAGES = (
    "My {thing} is broken, can I send it back?",
    "When will the {thing} that I ordered arrive?",
    "Do you still sell the blue {thing}?",
    "The {thing} costs less elsewhere, what now?",
    "I was charged twice for one {thing}.",
    "May I change the {thing} for another one?",
    "Is there a guarantee on the {thing}?",
    "Somebody else got my {thing}.",
    "The {thing} looks different from the picture.",
    "Please cancel the {thing} from this morning.",
    "Where do I find the manual of the {thing}?",
    "I want to praise whoever made this {thing}.",
)
Row = dict[str, list[dict[str, str]]]


def rows(seed: int = 0) -> list[Row]:
    """All 216 messages as OpenAI's chat examples, in an order drawn with the seed."""
    pairs = [
        (message.format(thing=thing), label)
        for label, things in THINGS_BY_LABEL.items()
        for thing in things
        for message in MESSAGES
    ]
    random.Random(seed).shuffle(pairs)
    return [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}]}
        for text, label in pairs
    ]


def shuffled(examples: Sequence[Row], seed: int = 0) -> list[Row]:
    """The same messages with their answers shuffled: all there is to learn is which answers there are."""
    answers = [row["messages"][1] for row in examples]
    random.Random(seed).shuffle(answers)
    return [{"messages": [row["messages"][0], answer]} for row, answer in zip(examples, answers, strict=True)]


def jsonl(examples: Sequence[Row]) -> bytes:
    """The examples as a JSONL file."""
    return "".join(json.dumps(row) + "\n" for row in examples).encode()
