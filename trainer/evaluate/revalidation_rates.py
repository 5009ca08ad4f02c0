"""How often revalidation demotes versions that are unharmed, and finds those that are harmed, by simulation.

    python -m trainer.evaluate.revalidation_rates

Prints the tables of REVALIDATION.md in about a minute; every state is that of the rule's own code
(`revalidation.score_state`). Answers are right or wrong, or graded. A version is right on RIGHT of the questions; in
each run, also in the first, some answers flip. A year has four revalidations, all compared with the same first
evaluation.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from trainer.evaluate.paired_difference import IntervalMethod, paired_difference
from trainer.evaluate.revalidation import EARLIER, LOOKS, NOW, score_state, strict_method
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import Array, wins_and_losses
from trainer.evaluate.verdict import Rules, State

RIGHT: Final = 0.8
"""Accuracy of the version."""
COUNTS: Final = (50, 100, 200, 400)
FLIPS: Final = (0.0, 0.01, 0.02, 0.03, 0.10)
"""Share of the answers that differ between two evaluations of an unharmed version."""
FLIPPED: Final = 0.02
"""The same where the table is about losses."""
LOSSES: Final = (0.05, 0.10, 0.20)
DRAWS: Final = 4000
GRADED_DRAWS: Final = 400
GRADED_CHANGES: Final = (0.03, 0.10)
GRADED_MEAN: Final = 0.4
SHOWN: Final[tuple[State, ...]] = ("kept", "open", "broken")


@lru_cache(maxsize=100_000)
def state(wins: int, losses: int, changed: int, count: int, rules: Rules) -> State:
    """The state of the check of then against now.

    Args:
        wins: Questions that are right only now.
        losses: Questions that were right only then.
        changed: Questions with another answer than then.
        count: All questions.
        rules: The operator's settings.
    """
    equal = np.ones(count - wins - losses)
    now = np.concatenate([np.ones(wins), np.zeros(losses), equal])
    then = np.concatenate([np.zeros(wins), np.ones(losses), equal])
    difference, strict = (
        paired_difference(
            (NOW, now, NO_RUNS),
            (EARLIER, then, NO_RUNS),
            binary=True,
            method=method,
            bound=-rules.margin("exact_match"),
        )
        for method in (rules.method, strict_method(rules.method))
    )
    return score_state(difference, strict, unchanged=changed == 0)


def looks(
    count: int, *, flips: float, loss: float = 0.0, draws: int = DRAWS, seed: int = 0, rules: Rules | None = None
) -> list[list[State]]:
    """Per draw, the states at the LOOKS revalidations of a year.

    Args:
        count: Held-out questions.
        flips: Share of questions whose answer flips between right and wrong, from one evaluation to another.
        loss: How much of the accuracy was lost before the first revalidation, as a share of all questions.
        draws: Simulated versions.
        seed: Of the simulation.
        rules: The operator's settings.
    """
    rules, random = rules or Rules(), np.random.default_rng(seed)
    unstable = flips and (1 - np.sqrt(1 - 2 * flips)) / 2  # two evaluations differ with probability 2 u (1 - u)
    states = []
    for _ in range(draws):
        usual = random.random(count) < RIGHT
        broken = usual & (random.random(count) < loss / RIGHT)
        then = usual ^ (random.random(count) < unstable)
        states.append([_look(random, usual & ~broken, then, unstable, rules) for _ in range(LOOKS)])
    return states


def _look(random: np.random.Generator, usual: np.ndarray, then: np.ndarray, unstable: float, rules: Rules) -> State:
    now = usual ^ (random.random(len(usual)) < unstable)
    wins, losses = wins_and_losses(now.astype(float) - then.astype(float))
    return state(wins, losses, wins + losses, len(usual), rules)


def demoted(states: Sequence[Sequence[State]]) -> float:
    """The share of versions that fail at one of a year's revalidations or more."""
    return sum("broken" in year for year in states) / len(states)


def first_looks(states: Sequence[Sequence[State]]) -> dict[State, float]:
    """The share of each state at the first revalidation."""
    counts = Counter(year[0] for year in states)
    return {outcome: counts[outcome] / len(states) for outcome in SHOWN}


def graded(count: int, *, changed: float, loss: float = 0.0, draws: int = GRADED_DRAWS, seed: int = 0) -> float:
    """The share of versions with graded scores that fail within a year (unharmed), or at once (``loss`` above 0).

    Scores are Beta(2, 3), with mean 0.4. A changed answer gets another score, drawn independently.

    Args:
        count: Held-out questions.
        changed: Share of answers that differ from the first evaluation.
        loss: How much of the mean was lost: that share, divided by the mean, of the answers score 0.
        draws: Simulated versions.
        seed: Of the simulation.
    """
    random, rules = np.random.default_rng(seed), Rules(method=IntervalMethod(resamples=1000))
    failed = 0
    for _ in range(draws):
        then = random.beta(2, 3, count)
        broken = random.random(count) < loss / GRADED_MEAN
        for _ in range(LOOKS if loss == 0 else 1):
            again = random.beta(2, 3, count)
            now = np.where(broken, 0.0, np.where(random.random(count) < changed, again, then))
            if _graded_state(now, then, rules) == "broken":
                failed += 1
                break
    return failed / draws


def _graded_state(now: Array, then: Array, rules: Rules) -> State:
    bound = -rules.margin("rouge_l")
    if float((now - then).mean()) >= bound:
        return "open"  # or kept: no failure, and the intervals need not be computed
    difference, strict = (
        paired_difference((NOW, now, NO_RUNS), (EARLIER, then, NO_RUNS), binary=False, method=method, bound=bound)
        for method in (rules.method, strict_method(rules.method))
    )
    return score_state(difference, strict, unchanged=False)


def graded_table(*, draws: int = GRADED_DRAWS) -> str:
    """The table for graded scores in Markdown, in percent of versions that fail."""
    heads = "".join(f" {count} questions |" for count in COUNTS)
    lines = [f"| graded scores |{heads}", "|---|" + "---|" * len(COUNTS)]
    rows: list[tuple[str, float, float]] = [
        (f"unharmed, {100 * changed:.0f}% of answers change, within a year", changed, 0.0) for changed in GRADED_CHANGES
    ]
    rows += [(f"{100 * loss:.0f} points lost, at the first revalidation", FLIPPED, loss) for loss in LOSSES[:2]]
    for name, changed, loss in rows:
        cells = [_percent(graded(count, changed=changed, loss=loss, draws=draws)) for count in COUNTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(*, draws: int = DRAWS, rules: Rules | None = None) -> str:
    """Both tables in Markdown, in percent: unharmed versions, and harmed ones."""
    heads = "".join(f" {count} questions |" for count in COUNTS)
    ruler = "|---|" + "---|" * len(COUNTS)
    lines = [f"| unharmed; answers that flip |{heads}", ruler]
    for flips in FLIPS:
        cells = []
        for count in COUNTS:
            states = looks(count, flips=flips, draws=draws, rules=rules)
            cells.append(f"{_percent(demoted(states))} ({_cell(first_looks(states))})")
        lines.append(f"| {100 * flips:.0f}% | {' | '.join(cells)} |")
    lines += ["", f"| lost |{heads}", ruler]
    for loss in LOSSES:
        cells = []
        for count in COUNTS:
            states = looks(count, flips=FLIPPED, loss=loss, draws=draws, rules=rules)
            cells.append(f"{_percent(demoted(states))} ({_cell(first_looks(states))})")
        lines.append(f"| {100 * loss:.0f} points | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(shares: dict[State, float]) -> str:
    return " / ".join(_percent(shares[outcome]) for outcome in SHOWN)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate.revalidation_rates", description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS, help="simulated versions per cell")
    parser.add_argument("--graded", type=int, default=GRADED_DRAWS, help="the same for graded scores")
    options = parser.parse_args(arguments)
    print(tables(draws=options.draws))
    print(f"\n{graded_table(draws=options.graded)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
