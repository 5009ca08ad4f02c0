"""A closed set of answers that a small model learns in a minute: which desk of a shop a message is for.

The thing that a message is about decides. The desks' names mean nothing, so that nobody can guess them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

DESKS = {
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
    """All 216 messages in an order drawn with the seed, as OpenAI's chat examples."""
    pairs = [
        (message.format(thing=thing), desk)
        for desk, things in DESKS.items()
        for thing in things
        for message in MESSAGES
    ]
    random.Random(seed).shuffle(pairs)
    return [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": desk}]}
        for text, desk in pairs
    ]


def shuffled(found: Sequence[Row], seed: int = 0) -> list[Row]:
    """The same messages with the answers mixed up: there is nothing to learn but which answers there are."""
    answers = [row["messages"][1] for row in found]
    random.Random(seed).shuffle(answers)
    return [{"messages": [row["messages"][0], answer]} for row, answer in zip(found, answers, strict=True)]


def jsonl(found: Sequence[Row]) -> bytes:
    """As a file."""
    return "".join(json.dumps(row) + "\n" for row in found).encode()
