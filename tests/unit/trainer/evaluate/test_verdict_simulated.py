"""What EVALUATION.md promises of verdicts, over simulated comparisons: how often they err, and how often they see."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.unit.trainer.evaluate.worlds import QUICK, comparison, forgetting, form, seeded
from trainer.evaluate.statistics.paired import tango_interval
from trainer.evaluate.verdict import Rules, decide

MANY = 200
RULES = Rules(method=QUICK)
DOCUMENT = Path("trainer/evaluate/EVALUATION.md").read_text()


def words(
    gain: float, *, count: int, seed: int, binary: bool = True, noise: float = 0.0, many: int = MANY
) -> Counter[str]:
    """Verdicts over comparisons where the candidate is truly better by `gain`."""
    random, found = seeded(seed), Counter[str]()
    for _ in range(many):
        hard = random.uniform(-1, 1, count)

        def scores(level: float, hard: np.ndarray = hard) -> list[list[float]]:
            if not binary:
                spread = random.beta(2, 4, count) - 1 / 3
                return [list(np.clip(0.4 + level + 0.1 * hard + 0.6 * spread, 0, 1))]
            first = (random.random(count) < 0.45 + level + 0.4 * hard).astype(float)
            again = np.where(random.random(count) < noise, 1 - first, first)
            return [list(first), list(again)]

        arms = {"tuned": scores(gain), "base": scores(0.0)}
        verdict = decide(
            comparison(arms, binary=binary),
            candidate="tuned",
            bases=["base"],
            form=form(count),
            forgetting=forgetting(),
            rules=RULES,
        )
        found[verdict.word] += 1
    return found


def promised() -> float:
    """The share of comparisons of equal arms that may pass, as the document says."""
    stated = re.search(r"at most ([\d.]+)% of comparisons of equal arms pass", DOCUMENT)
    assert stated is not None
    return float(stated[1]) / 100


@pytest.mark.parametrize("count", [30, 60, 100])
def test_counted_out_exactly_equal_arms_pass_no_oftener_whatever_share_of_pairs_differs(count: int) -> None:
    cells = [(wins, losses) for wins in range(count + 1) for losses in range(count + 1 - wins) if wins > losses]
    passing = np.array([cell for cell in cells if tango_interval(*cell, count, 0.95)[0] > RULES.smallest_difference])
    counts = np.column_stack([passing, count - passing.sum(axis=1)])
    for differing in np.linspace(0.01, 0.99, 50):
        shares = [differing / 2, differing / 2, 1 - differing]
        assert stats.multinomial.pmf(counts, count, shares).sum() <= promised()


@pytest.mark.parametrize("count", [30, 100, 400])
def test_of_equal_arms_no_more_pass_than_is_stated(count: int) -> None:
    assert words(0.0, count=count, seed=count)["pass"] <= promised() * MANY


@pytest.mark.slow
def test_also_with_noise_between_runs_and_with_scores_between() -> None:
    assert words(0.0, count=100, seed=1, noise=0.03)["pass"] <= promised() * MANY
    assert words(0.0, count=60, seed=2, binary=False)["pass"] <= promised() * MANY


@pytest.mark.slow
def test_a_gain_of_just_what_matters_passes_as_rarely_as_the_confidence_says() -> None:
    passed = words(0.02, count=200, seed=3, many=400)["pass"]
    assert passed <= 400 * (0.025 + 3 * np.sqrt(0.025 * 0.975 / 400))


def test_a_large_gain_passes() -> None:
    assert words(0.3, count=100, seed=4)["pass"] >= 0.9 * MANY


@pytest.mark.slow
def test_with_few_examples_equal_arms_are_left_open_and_with_many_they_fail() -> None:
    assert words(0.0, count=30, seed=5)["not_enough_evidence"] >= 0.8 * MANY
    assert words(-0.05, count=1500, seed=6, many=50)["fail"] >= 45


def test_what_one_verdict_calls_detectable_the_next_ones_detect() -> None:
    random = seeded(8)
    first = (random.random(150) < 0.5).astype(float)
    other = np.where(random.random(150) < 0.3, 1 - first, first)
    verdict = decide(
        comparison({"tuned": [list(first)], "base": [list(other)]}),
        candidate="tuned",
        bases=["base"],
        form=form(150),
        forgetting=forgetting(),
        rules=RULES,
    )
    assert verdict.detectable is not None
    discordant = (verdict.against_base.wins + verdict.against_base.losses) / 150
    detected = 0
    for _ in range(MANY):
        fate = random.random(150)
        wins = fate < (discordant + verdict.detectable) / 2
        losses = (fate >= (discordant + verdict.detectable) / 2) & (fate < discordant)
        both = random.random(150) < 0.5
        tuned, base = np.where(wins, 1, np.where(losses, 0, both)), np.where(losses, 1, np.where(wins, 0, both))
        detected += (
            decide(
                comparison({"tuned": [list(tuned)], "base": [list(base)]}),
                candidate="tuned",
                bases=["base"],
                form=form(150),
                forgetting=forgetting(),
                rules=RULES,
            ).word
            == "pass"
        )
    assert 0.7 * MANY <= detected <= 0.92 * MANY
