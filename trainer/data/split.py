"""Splits off held-out examples if none are given, by groups of near-duplicate questions that stay on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.data.format import Example
from trainer.data.similar import groups, merged, normalise

SHARE: Final = 0.1
MIN_HELD_OUT: Final = 10
"""With fewer than twice as many examples nothing is held out, as too few would be left to train on."""
MAX_HELD_OUT: Final = 1000
SEED: Final = 0
"""The same for every split: a job's own seed would hold out examples that an earlier version was trained on."""


@dataclass(frozen=True, slots=True)
class Split:
    """The indices of the examples on either side, each in file order."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def split(examples: Sequence[Example], *, seed: int = SEED, share: float = SHARE) -> Split:
    """Hold out about `share` of the examples, between MIN_HELD_OUT and MAX_HELD_OUT, by groups of similar questions.

    Examples that name the same group, such as a customer, stay together as well.

    Depends on examples, seed and share alone, and a group's place on its questions alone: if the file grows or is
    reordered, nearly the same examples are held out. Nothing is held out of fewer than 2 * MIN_HELD_OUT examples, or if
    one group is so large that nothing else fits.
    """
    everything = tuple(range(len(examples)))
    target = min(MAX_HELD_OUT, max(MIN_HELD_OUT, round(len(examples) * share)))
    if len(examples) < 2 * MIN_HELD_OUT or share == 0:
        return Split(everything, ())
    questions = [question(example) for example in examples]
    normalised = [normalise(text) for text in questions]
    held: list[int] = []
    # by the hash of one question per group: the smallest of all its hashes would favour large groups
    together = merged(groups(questions), [example.group for example in examples])
    for group in sorted(together, key=lambda group: _draw_key(seed, min(normalised[index] for index in group))):
        if len(held) + len(group) <= target:
            held += group
    held_out = set(held)
    return Split(tuple(index for index in everything if index not in held_out), tuple(sorted(held)))


def _draw_key(seed: int, normalised: str) -> str:
    """The sort key of a question: pseudo-random, and the same in every file."""
    return hashlib.sha256(f"{seed}/held-out/{normalised}".encode()).hexdigest()


def question(example: Example) -> str:
    """The messages before the last answer, without the system message, as one text."""
    return "\n".join(message.content for message in example.messages[:-1] if message.role != "system")


def answer(example: Example) -> str:
    """The last message."""
    return example.messages[-1].content
