"""How many examples a job holds out of its training file, and what to do if they are too few for a pass."""

from __future__ import annotations

import math
from typing import Final, Literal

from adapters.wording import counted

SHARE: Final = 0.1
MIN_SHARE: Final = 0.01
MAX_SHARE: Final = 0.5
MIN_HELD_OUT: Final = 10
"""With fewer than twice as many examples nothing is held out, as too few would be left to train on."""
MAX_HELD_OUT: Final = 1000
DEFAULT_MIN_EXAMPLES: Final = 30
"""The default of the trainer's setting HATRACK_TRAINER_MIN_EXAMPLES: held-out examples that a pass needs."""


MIN_VALIDATION: Final = 20
MAX_VALIDATION: Final = 200
VALIDATION_SHARE: Final = 0.1
VALIDATED_FROM: Final = 200
"""Training examples from which a validation part is set aside: MIN_VALIDATION of them are then VALIDATION_SHARE, what
the held-out part costs, too. A choice: of fewer examples every tenth is worth more than a better stop."""
VALIDATED_FROM_GIVEN: Final = 100
"""The same with a validation file, which leaves the training file its held-out tenth."""


def validation_target(examples: int, share: float | None, *, given: bool) -> int:
    """How many of the training examples, without the held-out ones, are set aside to find the best epoch.

    Args:
        examples: The training examples.
        share: The requested share; 0 for no validation part, None to choose.
        given: Whether there is a validation file, so that nothing else is taken from the training file.
    """
    if share == 0 or examples < 2 * MIN_VALIDATION:
        return 0
    if share is None:
        if examples < (VALIDATED_FROM_GIVEN if given else VALIDATED_FROM):
            return 0
        share = VALIDATION_SHARE
    return min(MAX_VALIDATION, max(MIN_VALIDATION, round(examples * share)))


def held_out_target(examples: int, share: float = SHARE) -> int:
    """The most examples that a split of so many holds out; fewer if near-duplicate questions form large groups."""
    if examples < 2 * MIN_HELD_OUT or share == 0:
        return 0
    return min(MAX_HELD_OUT, max(MIN_HELD_OUT, round(examples * share)))


def examples_needed(min_examples: int, share: float = SHARE) -> int | None:
    """The smallest number of examples of which ``min_examples`` are held out; None if no number is enough."""
    if min_examples > MAX_HELD_OUT or share == 0:
        return None
    needed = 2 * MIN_HELD_OUT
    if min_examples > MIN_HELD_OUT:
        needed = max(needed, math.floor((min_examples - 1) / share))
    while held_out_target(needed, share) < min_examples:
        needed += 1
    return needed


def share_needed(examples: int, min_examples: int) -> float | None:
    """The smallest share, in hundredths, that holds out ``min_examples`` of so many; None if it is over MAX_SHARE."""
    share = math.ceil(100 * min_examples / max(1, examples)) / 100
    return share if share <= MAX_SHARE and held_out_target(examples, share) >= min_examples else None


def describe_shortage(
    held_out: int,
    min_examples: int,
    *,
    source: Literal["given", "split"],
    examples: int,
    share: float = SHARE,
    possible_share: float | None = None,
) -> str:
    """What a caller can do about too few held-out examples, as one paragraph.

    Args:
        source: `given` for a validation file, `split` if they are, or would be, split off the training file.
        examples: The examples of the training file.
        share: The share that is split off.
        possible_share: A share that holds out enough; None if there is none.
    """
    held = f"Only {counted(held_out, 'example is', 'examples are')}" if held_out else "No example is"
    shortage = f"{held} held out, but a pass needs {min_examples}, so the trained version cannot pass. "
    ways = []
    if source == "given":
        ways.append(f"add at least {counted(min_examples - held_out, 'example')} to the validation file")
    else:
        if held_out < held_out_target(examples, share):
            shortage += (
                "Questions that are near-duplicates stay on one side, and here they form groups too large to hold out: "
                "if they share a long instruction, put it into the system message. "
            )
        needed = examples_needed(min_examples, share)
        ways.append(f"send a validation_file with at least {min_examples} other examples")
        if needed is not None and needed > examples:
            ways.append(f"add at least {needed - examples} examples, for {needed} in all")
        if possible_share is not None:
            ways.append(f"set held_out_share to {possible_share:g}")
    ways.append("set promote to never, and decide about the version by hand")
    return f"{shortage}Either {'; or '.join(ways)}."
