"""Error rates and power where examples are not independent, are looked at repeatedly, or lose rarely but much.

    python -m trainer.evaluate.design_rates

Prints the tables of STATISTICS.md, "Independent examples", "Repeated looks" and "Rare large losses", in about two
minutes. The simulations use the rule's own functions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from trainer.evaluate.looks import look_confidence
from trainer.evaluate.paired_difference import IntervalMethod, paired_difference
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import Array, Units, interval, tango_interval
from trainer.evaluate.verdict import Rules

DRAWS: Final = 1000
GROWN: Final = ((100, 300), (250, 300), (300, 300))
"""Questions of an earlier sample, and of the sample of the file as it has grown since."""
SERIES: Final = 20
"""Versions in a series of retrains."""
COUNTS: Final = (100, 200, 400)
GROUPS: Final = ((8, 10), (20, 4), (40, 4), (80, 2))
"""Numbers of groups, and examples in each."""
ALIKE: Final = 0.9
"""Share of a group's examples that are answered as its first one."""
BASE_RIGHT: Final = 0.45
DIFFER: Final = 0.3
"""Share of questions on which exactly one of base and candidate is right, where both are equally good."""
LOOKS: Final = (1, 2, 5, 10, 20)
BOUND: Final = Rules().smallest_difference
METHOD: Final = IntervalMethod(resamples=1000)


def grouped_passes(groups: int, size: int, gain: float, *, by_units: bool, draws: int = DRAWS, seed: int = 0) -> float:
    """The share of held-out sets, of groups of near-duplicates, whose interval lies above the smallest difference.

    Args:
        groups, size: Number of groups, and of examples in each.
        gain: The candidate's true accuracy minus the base's.
        by_units: Whether each group counts as one.
        draws: Simulated sets.
        seed: Of the simulation.
    """
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(groups), size)
    passes = 0
    for _ in range(draws):
        scores = [_grouped_scores(rng, right, groups, size) for right in (BASE_RIGHT + gain, BASE_RIGHT)]
        passes += _low(scores[0], scores[1], units.tolist() if by_units else None) > BOUND
    return passes / draws


def _grouped_scores(rng: np.random.Generator, right: float, groups: int, size: int) -> Array:
    first = rng.random(groups) < right
    own = rng.random((groups, size)) < right
    follows = rng.random((groups, size)) < ALIKE
    return np.where(follows, first[:, None], own).astype(float).ravel()


def _low(candidate: Array, base: Array, units: Units | None) -> float:
    difference = paired_difference(
        ("candidate", candidate, NO_RUNS), ("base", base, NO_RUNS), binary=True, method=METHOD, units=units
    )
    return difference.low


@lru_cache(maxsize=200_000)
def _shown(wins: int, losses: int, count: int, confidence: float) -> bool:
    return tango_interval(wins, losses, count, confidence)[0] > BOUND


def lucky_series(count: int, *, paid: bool, draws: int = DRAWS, seed: int = 0) -> float:
    """The share of series of SERIES versions, none of them better than the base, in which at least one is shown to be.

    The base's answers are the same for all: it is one held-out set.
    """
    rng = np.random.default_rng(seed)
    lucky = 0
    for _ in range(draws):
        base_right = rng.random(count) < BASE_RIGHT
        lucky += any(
            _shown(*_wins_and_losses(rng, base_right, 0.0), count, _confidence(number, paid=paid))
            for number in range(1, SERIES + 1)
        )
    return lucky / draws


def grown_passes(sample_size: int, cap: int, gain: float, *, draws: int = DRAWS, seed: int = 0) -> float:
    """How often a version passes on its second look where its file was grown so as to push out what it lost.

    Samples are drawn in a fixed random order, so new questions may push out the last ones of an earlier sample. Whoever
    knows the answers to these adds as many as leave the part in which the version leads by most.

    Args:
        sample_size: Questions of the earlier sample.
        cap: Questions of the later one, at least as many.
        gain: The candidate's true accuracy minus the base's.
    """
    rng, passes = np.random.default_rng(seed), 0
    shares = [(DIFFER + gain) / 2, 1 - DIFFER, (DIFFER - gain) / 2]
    for _ in range(draws):
        earlier = rng.choice([1, 0, -1], sample_size, p=shares)
        kept = int(np.argmax(np.cumsum(earlier))) + 1
        scores = np.concatenate([earlier[:kept], rng.choice([1, 0, -1], cap - kept, p=shares)])
        wins, losses = int(np.count_nonzero(scores == 1)), int(np.count_nonzero(scores == -1))
        passes += _shown(wins, losses, cap, _confidence(2, paid=True))
    return passes / draws


def power_at(count: int, gain: float, number: int, *, draws: int = DRAWS, seed: int = 0) -> float:
    """How often a version with this true gain is shown to be better if it is the ``number``-th on the examples."""
    rng, confidence = np.random.default_rng(seed), _confidence(number, paid=True)
    shown = 0
    for _ in range(draws):
        base_right = rng.random(count) < BASE_RIGHT
        shown += _shown(*_wins_and_losses(rng, base_right, gain), count, confidence)
    return shown / draws


def _confidence(number: int, *, paid: bool) -> float:
    return look_confidence(METHOD.confidence, number if paid else 1)


def _wins_and_losses(rng: np.random.Generator, base_right: np.ndarray, gain: float) -> tuple[int, int]:
    """A candidate's, given on which questions the base is right."""
    lost = (DIFFER - gain) / 2 / BASE_RIGHT
    won = (DIFFER + gain) / 2 / (1 - BASE_RIGHT)
    draws = rng.random(len(base_right))
    return int(np.count_nonzero(~base_right & (draws < won))), int(np.count_nonzero(base_right & (draws < lost)))


Draw = Callable[[np.random.Generator, int], Array]


def _rare_losses(rng: np.random.Generator, count: int) -> Array:
    losses = rng.random(count) < 0.03
    return np.where(losses, -rng.uniform(0.5, 1.0, count), rng.normal(0.04, 0.03, count).clip(-1, 1))


def _skewed_ties(rng: np.random.Generator, count: int) -> Array:
    return rng.choice([0.0, 0.5, -0.5], count, p=[0.8, 0.17, 0.03])


def _free_text(rng: np.random.Generator, count: int) -> Array:
    return rng.normal(0.08, 0.1, count).clip(-0.5, 1)


CASES: Final[Sequence[tuple[str, Draw, tuple[float, float]]]] = (
    ("gains of 4 points, losses of 50 to 100 in 3%", _rare_losses, (0.75, 0.75)),
    ("a judge: 80% ties, 17% wins, 3% losses", _skewed_ties, (0.5, 0.5)),
    ("free text: 8 points, standard deviation 10", _free_text, (0.15, 0.85)),
)


def above_truth(
    draw: Draw, count: int, reach: tuple[float, float] | None, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """How often the lower end lies above the true mean (nominal 2.5%), and the mean lower end."""
    rng = np.random.default_rng(seed)
    truth = float(draw(np.random.default_rng(seed + 1), 1_000_000).mean())
    lows = [
        interval(draw(rng, count), confidence=0.95, binary=False, seed=0, resamples=1000, reach=reach).low
        for _ in range(draws)
    ]
    return float(np.mean([low > truth for low in lows])), float(np.mean(lows))


def tables(draws: int = DRAWS) -> str:
    """All tables in Markdown; percent but for the lower ends, which are in points."""
    lines = [
        "| groups × examples | equal arms, each example counted | equal arms, groups counted | 20 points better, "
        "groups counted |",
        "|---|---|---|---|",
    ]
    for groups, size in GROUPS:
        naive = grouped_passes(groups, size, 0.0, by_units=False, draws=draws)
        cells = [grouped_passes(groups, size, gain, by_units=True, draws=draws) for gain in (0.0, 0.2)]
        lines.append(f"| {groups} × {size} | {' | '.join(_percent(cell) for cell in (naive, *cells))} |")
    lines += ["", f"| examples | {SERIES} looks, unpaid | {SERIES} looks, paid |", "|---|---|---|"]
    for count in COUNTS:
        shares = [lucky_series(count, paid=paid, draws=draws) for paid in (False, True)]
        lines.append(f"| {count} | {' | '.join(_percent(share) for share in shares)} |")
    lines += ["", "| asked before | asked of the grown file | equal | 2 points better |", "|---|---|---|---|"]
    for sample_size, cap in GROWN:
        shares = [grown_passes(sample_size, cap, gain, draws=10 * draws) for gain in (0.0, BOUND)]
        lines.append(f"| {sample_size} | {cap} | {' | '.join(_percent(share) for share in shares)} |")
    lines += ["", f"| truly | examples |{''.join(f' look {number} |' for number in LOOKS)}"]
    lines.append("|---|---|" + "---|" * len(LOOKS))
    for gain in (0.1, 0.2):
        for count in COUNTS:
            powers = [_percent(power_at(count, gain, number, draws=draws)) for number in LOOKS]
            lines.append(f"| {100 * gain:.0f} points better | {count} | {' | '.join(powers)} |")
    lines += ["", "| differences | examples | above the truth, before | now | mean lower end, before | now |"]
    lines.append("|---|---|---|---|---|---|")
    for name, draw, reach in CASES:
        for count in (30, 60, 100):
            before, now = (above_truth(draw, count, given, draws=draws) for given in (None, reach))
            ends = f"{100 * before[1]:.1f} | {100 * now[1]:.1f}"
            lines.append(f"| {name} | {count} | {_percent(before[0])} | {_percent(now[0])} | {ends} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate.design_rates", description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS, help="simulated held-out sets per cell")
    print(tables(parser.parse_args(arguments).draws))
    return 0


if __name__ == "__main__":
    sys.exit(main())
