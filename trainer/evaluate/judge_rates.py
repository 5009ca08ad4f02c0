"""How often a judge counts, by simulation with the gate itself: `JudgeAgreement` and the default settings.

    python -m trainer.evaluate.judge_rates

Prints the tables of JUDGES.md in one to two minutes. A simulated judge repeats the reviewer's vote with probability
kappa and else draws one from the reviewers' distribution, so that kappa is true and it leans to neither side; of a
leaning judge's votes, a share is replaced by a vote for one side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np

from trainer.evaluate.endpoints import JudgeSettings
from trainer.evaluate.paired_difference import NO_LEAN, IntervalMethod, Lean, paired_difference
from trainer.evaluate.pairs import SCORES, JudgeAgreement, Vote
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import Array
from trainer.evaluate.verdict import Rules

VOTES: Final[tuple[Vote, ...]] = ("candidate", "tie", "base")
SETTINGS: Final = JudgeSettings(endpoint="big", model="large", rubric="The better answer is right, and short.")
PEOPLE: Final = (0.45, 0.20, 0.35)
"""How often people prefer the candidate, neither, and the base."""
FEW_TIES: Final = (0.50, 0.04, 0.46)
MOSTLY_CANDIDATE: Final = (0.60, 0.20, 0.20)
EVEN: Final = (1 / 3, 1 / 3, 1 / 3)
EQUAL: Final = (0.40, 0.20, 0.40)
KAPPAS: Final = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COUNTS: Final = (100, 150, 200, 300, 400)
LOOKS: Final = tuple(range(100, 1001, 50))
EXAMPLES: Final = 1000
DRAWS: Final = 1000
ESTIMATE_ALONE: Final = 0.6
"""What the estimate of kappa alone had to reach, over 50 reviews, before the bounds decided."""

Gate = Callable[[JudgeAgreement], bool]


@dataclass(frozen=True, slots=True)
class SimulatedJudge:
    """A judge and the people who review it.

    Attributes:
        kappa: Its agreement with people before its lean.
        lean: The share of its votes that is replaced by one for ``towards``.
        people: How often people vote for the candidate, for neither, and for the base.
    """

    kappa: float
    lean: float = 0.0
    towards: Vote = "candidate"
    people: tuple[float, float, float] = PEOPLE

    @property
    def votes(self) -> Array:
        """The probability of each pair of votes, shape (judge's vote, reviewer's vote), in the order of VOTES."""
        people = np.array(self.people)
        table: Array = self.kappa * np.diag(people) + (1 - self.kappa) * np.outer(people, people)
        table *= 1 - self.lean
        table[VOTES.index(self.towards)] += self.lean * people
        return table

    @property
    def true_kappa(self) -> float:
        """Cohen's kappa of its votes."""
        chance = float(self.votes.sum(axis=0) @ self.votes.sum(axis=1))
        return (float(np.trace(self.votes)) - chance) / (1 - chance)

    @property
    def true_lean(self) -> float:
        """How much more it favours the candidate than people do."""
        scores = np.array([SCORES[vote] for vote in VOTES])
        return float(scores @ self.votes.sum(axis=1) - scores @ self.votes.sum(axis=0))


@lru_cache(maxsize=20_000)
def record(counts: tuple[int, ...]) -> JudgeAgreement:
    """The agreement over reviews with these numbers of each pair of votes."""
    pairs = [(judge, reviewer) for judge in VOTES for reviewer in VOTES]
    votes = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    return JudgeAgreement.of_votes(SETTINGS.digest, votes)


def records(judge: SimulatedJudge, reviews: int, draws: int, seed: int) -> list[JudgeAgreement]:
    """The agreement after that many reviews, of each draw."""
    tables = np.random.default_rng(seed).multinomial(reviews, judge.votes.ravel(), size=draws)
    return [record(tuple(table)) for table in tables.tolist()]


def gate(settings: JudgeSettings = SETTINGS) -> Gate:
    """Whether a judge counts under the settings."""
    return lambda standing: standing.counts(settings)


def estimate_alone(standing: JudgeAgreement) -> bool:
    """Whether a judge would count if only the estimate of kappa decided."""
    return standing.kappa is not None and standing.kappa >= ESTIMATE_ALONE


def counted(
    judge: SimulatedJudge, reviews: int, *, draws: int = DRAWS, seed: int = 0, rule: Gate | None = None
) -> float:
    """How often a judge counts after that many reviews."""
    rule = rule or gate()
    return sum(map(rule, records(judge, reviews, draws, seed))) / draws


def ever_counted(judge: SimulatedJudge, looks: Sequence[int] = LOOKS, *, draws: int, seed: int = 0) -> float:
    """How often a judge counts at one look or more, if the reviews add up from look to look."""
    rng, rule = np.random.default_rng(seed), gate()
    tables = np.zeros((draws, len(VOTES) ** 2), dtype=np.int64)
    waiting = np.ones(draws, dtype=bool)
    for before, reviews in pairwise((0, *looks)):
        tables += rng.multinomial(reviews - before, judge.votes.ravel(), size=draws)
        for draw in np.flatnonzero(waiting):
            waiting[draw] = not rule(record(tuple(tables[draw].tolist())))
    return 1 - float(waiting.mean())


def above_kappa(judge: SimulatedJudge, reviews: int, *, draws: int = DRAWS, seed: int = 0) -> float:
    """How often the lower end of the interval of kappa lies above the true value; 1% is intended."""
    agreements = records(judge, reviews, draws, seed)
    return sum(standing.low is not None and standing.low > judge.true_kappa for standing in agreements) / draws


def below_lean(judge: SimulatedJudge, reviews: int, *, draws: int = DRAWS, seed: int = 0) -> float:
    """How often the upper end of the interval of the lean lies below the true value; 1% is intended."""
    agreements = records(judge, reviews, draws, seed)
    return (
        sum(standing.lean_high is not None and standing.lean_high < judge.true_lean for standing in agreements) / draws
    )


def preferred(
    judge: SimulatedJudge, reviews: int, examples: int = EXAMPLES, *, draws: int, seed: int = 0, allow: bool = True
) -> float:
    """How often a judge counts and its votes alone show the candidate to be better than the strongest base.

    Args:
        judge: The judge; ``people`` are also the truth about the candidate.
        reviews: Over which its lean is known.
        examples: That it votes on in the evaluation.
        draws, seed: Of the simulation.
        allow: Whether the intervals allow for its lean, as the verdict's do.
    """
    rules, rng, shown = Rules(method=IntervalMethod(resamples=1000)), np.random.default_rng((seed, 1)), 0
    scores = np.array([SCORES[vote] for vote in VOTES])
    for standing in records(judge, reviews, draws, seed):
        votes = rng.choice(scores, size=examples, p=judge.votes.sum(axis=1))
        lean: Lean = NO_LEAN
        if allow and standing.lean_low is not None and standing.lean_high is not None:
            lean = (standing.lean_low, standing.lean_high)
        difference = paired_difference(
            ("candidate", votes, NO_RUNS),
            ("even", np.full(examples, 0.5), NO_RUNS),
            binary=False,
            method=rules.method,
            lean=lean,
        )
        shown += standing.counts(SETTINGS) and difference.low > rules.smallest_difference
    return shown / draws


UNBIASED: Final = {f"κ = {kappa}": SimulatedJudge(kappa) for kappa in KAPPAS} | {
    "κ = 0.5, few ties": SimulatedJudge(0.5, people=FEW_TIES),
    "κ = 0.8, few ties": SimulatedJudge(0.8, people=FEW_TIES),
    "κ = 0.8, people mostly prefer the candidate": SimulatedJudge(0.8, people=MOSTLY_CANDIDATE),
}
LEANING: Final = {
    "35% to the candidate, else κ = 1, people even": SimulatedJudge(1.0, 0.35, people=EVEN),
    "35% to the candidate, else κ = 1": SimulatedJudge(1.0, 0.35),
    "35% to the candidate, else κ = 0.9": SimulatedJudge(0.9, 0.35),
    "35% to the candidate, else κ = 1, people mostly prefer it": SimulatedJudge(1.0, 0.35, people=MOSTLY_CANDIDATE),
    "20% to the candidate, else κ = 0.9": SimulatedJudge(0.9, 0.20),
    "10% to the candidate, else κ = 0.9": SimulatedJudge(0.9, 0.10),
    "10% to the base, else κ = 0.9": SimulatedJudge(0.9, 0.10, "base"),
}
REPEATED: Final = {
    "κ = 0.5": SimulatedJudge(0.5),
    "κ = 0.5, few ties": SimulatedJudge(0.5, people=FEW_TIES),
    "35% to the candidate, else κ = 0.9": SimulatedJudge(0.9, 0.35),
    "35% to the candidate, else κ = 1, people mostly prefer it": SimulatedJudge(1.0, 0.35, people=MOSTLY_CANDIDATE),
}
LEANS_A_LITTLE: Final = SimulatedJudge(0.9, 0.10, people=EQUAL)
"""Leans by 5 points where people prefer neither side."""


def tables(*, draws: int = DRAWS) -> str:
    """All tables in Markdown, in percent."""
    heads = "".join(f" {count} reviews |" for count in COUNTS)
    ruler = "---|" * len(COUNTS)
    lines = [f"| judge without a lean | estimate ≥ 0.6, 50 reviews |{heads}", f"|---|---|{ruler}"]
    for name, judge in UNBIASED.items():
        before = counted(judge, 50, draws=draws, rule=estimate_alone)
        lines.append(_row(name, before, *(counted(judge, count, draws=draws) for count in COUNTS)))
    lines += ["", f"| leaning judge | its κ, its lean | estimate ≥ 0.6, 50 reviews |{heads}", f"|---|---|---|{ruler}"]
    for name, judge in LEANING.items():
        before = counted(judge, 50, draws=draws, rule=estimate_alone)
        truth = f"{judge.true_kappa:.2f}, {100 * judge.true_lean:+.0f} points".replace("-", "−")
        lines.append(_row(f"{name} | {truth}", before, *(counted(judge, count, draws=draws) for count in COUNTS)))
    lines += ["", "| judge | counts at one of 19 looks, after 100, 150, … 1,000 reviews |", "|---|---|"]
    lines += [_row(name, ever_counted(judge, draws=draws)) for name, judge in REPEATED.items()]
    few = max(1, draws // 10)
    lines += ["", "| leans by 5 points, candidate as good as the base, 1,000 examples | 200 reviews | 400 reviews |"]
    lines.append("|---|---|---|")
    for name, allow in (("preferred, lean not allowed for", False), ("preferred, lean allowed for", True)):
        shown = [preferred(LEANS_A_LITTLE, reviews, draws=few, allow=allow) for reviews in (200, 400)]
        lines.append(_row(name, *shown))
    return "\n".join(lines)


def coverage(*, draws: int = DRAWS) -> str:
    """In Markdown, in percent: how often an end of an interval lies on the wrong side of the true value."""
    lines = [
        "| judge | κ is below the lower end: 50, 100, 200 reviews | lean is above the upper end |",
        "|---|---|---|",
    ]
    for name, judge in (UNBIASED | LEANING).items():
        cells = []
        for missed in (above_kappa, below_lean):
            cells.append(", ".join(f"{100 * missed(judge, count, draws=draws):.1f}" for count in (50, 100, 200)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(name: str, *shares: float) -> str:
    return f"| {name} | {' | '.join(f'{100 * share:.3g}' for share in shares)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate.judge_rates", description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS, help="simulated judges per cell")
    options = parser.parse_args(arguments)
    print(f"{tables(draws=options.draws)}\n\n{coverage(draws=options.draws)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
