"""A held-out part, where none is given: by groups of nearly equal questions, so that none straddles the border."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.data.format import Example
from trainer.data.similar import groups, normalise

SHARE: Final = 0.1
FEWEST: Final = 10
"""Below twice this many examples nothing is held out: there would be nothing left to learn from."""
MOST: Final = 1000
SEED: Final = 0
"""Of every split: a job's own seed would hold out what the former version of the same file learnt."""


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the examples on either side, each in the order of the file."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def split(examples: Sequence[Example], *, seed: int = SEED, share: float = SHARE) -> Split:
    """Hold out about `share` of the examples (at least FEWEST, at most MOST), by groups of similar questions.

    Depends on examples, seed and share alone, and for a group on what it asks: of a file that has grown, or was put in
    another order, nearly the same is held out. Nothing is held out of fewer than 2 FEWEST examples, or where one group
    is so large that nothing fits.
    """
    everything = tuple(range(len(examples)))
    wanted = min(MOST, max(FEWEST, round(len(examples) * share)))
    if len(examples) < 2 * FEWEST or share == 0:
        return Split(everything, ())
    asked = [normalise(question(example)) for example in examples]
    held: list[int] = []
    # by one question of each group: were the least of all its hashes to decide, large groups would come first
    for group in sorted(groups(asked), key=lambda group: _drawn(seed, min(asked[index] for index in group))):
        if len(held) + len(group) <= wanted:
            held += group
    kept = set(held)
    return Split(tuple(index for index in everything if index not in kept), tuple(sorted(held)))


def _drawn(seed: int, asked: str) -> str:
    """A question's place in the order: nobody's choice, and the same in whatever file it stands."""
    return hashlib.sha256(f"{seed}/held-out/{asked}".encode()).hexdigest()


def question(example: Example) -> str:
    """What stands before the last answer: what two examples must not share across the border."""
    return "\n".join(message.content for message in example.messages[:-1] if message.role != "system")


def answer(example: Example) -> str:
    """The last answer."""
    return example.messages[-1].content
