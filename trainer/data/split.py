"""A held-out part, where none is given: by groups of nearly equal questions, so that none straddles the border."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.data.format import Example
from trainer.data.similar import groups

SHARE: Final = 0.1
FEWEST: Final = 10
"""Below twice this many examples nothing is held out: there would be nothing left to learn from."""
MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the examples on either side, each in the order of the file."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def split(examples: Sequence[Example], *, seed: int, share: float = SHARE) -> Split:
    """Hold out about `share` of the examples (at least FEWEST, at most MOST), by groups of similar questions.

    Depends on examples, seed and share alone. Nothing is held out of fewer than 2 FEWEST examples, or where one group
    is so large that nothing fits.
    """
    everything = tuple(range(len(examples)))
    wanted = min(MOST, max(FEWEST, round(len(examples) * share)))
    if len(examples) < 2 * FEWEST or share == 0:
        return Split(everything, ())
    order = groups([question(example) for example in examples])
    random.Random(f"{seed}/held-out").shuffle(order)  # noqa: S311 - no secret
    held: list[int] = []
    for group in order:
        if len(held) + len(group) <= wanted:
            held += group
    kept = set(held)
    return Split(tuple(index for index in everything if index not in kept), tuple(sorted(held)))


def question(example: Example) -> str:
    """What stands before the last answer: what two examples must not share across the border."""
    return "\n".join(message.content for message in example.messages[:-1] if message.role != "system")


def answer(example: Example) -> str:
    """The last answer."""
    return example.messages[-1].content
