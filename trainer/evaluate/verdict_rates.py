"""False passes and power of a whole verdict on right-or-wrong answers, by simulation with the check itself.

    python -m trainer.evaluate.verdict_rates

Prints the table of STATISTICS.md, "Verdicts", in less than a minute. The other checks are taken as kept, so that the
check on the base decides. A question's difficulty is shared by both arms: the base is right with a probability from 5%
to 85%, 45% on average, and the candidate with that and the true gain.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from trainer.evaluate.paired_difference import paired_difference
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.verdict import Rules, State, above_bound

GAINS: Final = (0.0, 0.02, 0.05, 0.10, 0.20, 0.30)
COUNTS: Final = (30, 100, 300, 400)
BASE_RIGHT: Final = 0.45
SPREAD: Final = 0.4
"""Half the range of the probability that the base is right."""
DRAWS: Final = 2000
BATCH: Final = 200
SHOWN: Final[tuple[State, ...]] = ("kept", "open", "broken")


@lru_cache(maxsize=100_000)
def state(wins: int, losses: int, count: int) -> State:
    """The state of the check on the base if the candidate alone is right on ``wins`` of ``count`` questions, and the
    base alone on ``losses``."""
    rules, equal = Rules(), count - wins - losses
    difference = paired_difference(
        ("candidate", np.array([1.0] * wins + [0.0] * losses + [1.0] * equal), NO_RUNS),
        ("base", np.array([0.0] * wins + [1.0] * losses + [1.0] * equal), NO_RUNS),
        binary=True,
        method=rules.method,
        bound=rules.smallest_difference,
    )
    return above_bound(difference, count >= rules.min_examples)


def shares(gain: float, count: int, *, draws: int = DRAWS, seed: int = 0) -> dict[State, float]:
    """The share of each state over ``draws`` held-out sets of ``count`` questions, if the candidate gains ``gain``."""
    random, counts = np.random.default_rng(seed), Counter[State]()
    for done in range(0, draws, BATCH):
        size = min(BATCH, draws - done), count
        right = BASE_RIGHT + random.uniform(-SPREAD, SPREAD, size)
        base, candidate = random.random(size) < right, random.random(size) < right + gain
        wins, losses = (candidate & ~base).sum(axis=1), (base & ~candidate).sum(axis=1)
        counts.update(state(int(won), int(lost), count) for won, lost in zip(wins, losses, strict=True))
    return {outcome: counts[outcome] / draws for outcome in SHOWN}


def table(*, draws: int = DRAWS) -> str:
    """In Markdown: percent of verdicts that are `pass` / `not_enough_evidence` / `fail`."""
    heads = "".join(f" {'none' if not gain else f'{100 * gain:.0f} points'} |" for gain in GAINS)
    lines = [f"| true gain |{heads}", "|---|" + "---|" * len(GAINS)]
    for count in COUNTS:
        cells = [
            " / ".join(f"{100 * share:.3g}" for share in shares(gain, count, draws=draws).values()) for gain in GAINS
        ]
        lines.append(f"| {count} examples | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate.verdict_rates", description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS, help="simulated comparisons per cell")
    print(table(draws=parser.parse_args(arguments).draws))
    return 0


if __name__ == "__main__":
    sys.exit(main())
