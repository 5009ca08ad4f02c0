"""Judges that must not count, and judges that should: simulated with the gate itself, and as JUDGES.md says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from trainer.evaluate import judge_rates
from trainer.evaluate.judge_rates import SETTINGS, SimulatedJudge, counted, gate
from trainer.evaluate.pairs import SCORES
from trainer.evaluate.statistics import quantiles
from trainer.evaluate.statistics.agreement import CONFIDENCE
from trainer.evaluate.statistics.paired import student_interval

DRAWS = 150
DOCUMENT = Path("trainer/evaluate/JUDGES.md").read_text()
LEANING = [
    SimulatedJudge(1.0, 0.35, people=judge_rates.EVEN),
    SimulatedJudge(0.9, 0.35),
    SimulatedJudge(1.0, 0.35, people=judge_rates.MOSTLY_CANDIDATE),
]


def test_the_simulated_judges_are_what_they_are_said_to_be() -> None:
    fair = SimulatedJudge(0.5)
    assert (fair.true_kappa, fair.true_lean) == (pytest.approx(0.5), pytest.approx(0))
    assert LEANING[0].true_lean == pytest.approx(0.35 / 2)
    assert SimulatedJudge(0.9, 0.1, "base").true_lean == pytest.approx(-0.055)


@pytest.mark.parametrize("people", [judge_rates.PEOPLE, judge_rates.FEW_TIES])
def test_a_judge_of_kappa_one_half_hardly_ever_counts(people: tuple[float, float, float]) -> None:
    fair = SimulatedJudge(0.5, people=people)
    early = gate(SETTINGS.model_copy(update={"least_reviews": 50}))
    assert counted(fair, 50, draws=DRAWS, rule=early) <= 0.025
    assert counted(fair, 200, draws=DRAWS) <= 0.025
    assert counted(fair, 50, draws=DRAWS, rule=judge_rates.estimate_alone) >= 0.1, "or it would be no adversary"


@pytest.mark.parametrize("judge", LEANING)
def test_a_judge_that_leans_by_a_third_hardly_ever_counts(judge: SimulatedJudge) -> None:
    assert counted(judge, 100, draws=DRAWS) <= 0.03
    assert counted(judge, 300, draws=DRAWS) <= 0.03
    assert counted(judge, 50, draws=DRAWS, rule=judge_rates.estimate_alone) >= 0.4, "or it would be no adversary"


@pytest.mark.parametrize("people", [judge_rates.PEOPLE, judge_rates.MOSTLY_CANDIDATE])
def test_a_good_judge_counts_after_the_default_number_of_reviews(people: tuple[float, float, float]) -> None:
    good = SimulatedJudge(0.8, people=people)
    assert counted(good, SETTINGS.least_reviews, draws=DRAWS) >= 0.75
    assert counted(good, 200, draws=DRAWS) >= 0.95


def test_looking_again_and_again_does_not_make_it_count() -> None:
    assert judge_rates.ever_counted(SimulatedJudge(0.5), range(100, 501, 100), draws=DRAWS) <= 0.05


def test_the_intervals_ends_are_beyond_the_truth_as_rarely_as_they_should() -> None:
    for people in (judge_rates.PEOPLE, judge_rates.FEW_TIES):
        assert judge_rates.above_kappa(SimulatedJudge(0.8, people=people), 50, draws=DRAWS) <= 0.03
    assert judge_rates.below_lean(LEANING[2], 50, draws=DRAWS) <= 0.03


def test_textbook_intervals_alone_would_miss_twice_as_often() -> None:
    """Both at the same confidence, with 50 reviews: the reason for the wider ones."""
    z, scores = quantiles.normal(CONFIDENCE), np.array([SCORES[vote] for vote in judge_rates.VOTES])
    good, leaning = SimulatedJudge(0.8), SimulatedJudge(1.0, 0.22, people=judge_rates.FEW_TIES)
    large_sample = student = 0
    for table in np.random.default_rng(0).multinomial(50, good.votes.ravel(), size=400).reshape(-1, 3, 3):
        result = cohens_kappa(table, return_results=True)
        large_sample += result.kappa - z * math.sqrt(result.var_kappa) > good.true_kappa
    for table in np.random.default_rng(1).multinomial(50, leaning.votes.ravel(), size=400).reshape(-1, 3, 3):
        differences = np.repeat(np.subtract.outer(scores, scores).ravel(), table.ravel())
        student += student_interval(differences, CONFIDENCE)[1] < leaning.true_lean
    assert large_sample / 400 >= 0.02
    assert student / 400 >= 0.02


def test_a_small_lean_makes_no_equal_candidate_better_than_the_base() -> None:
    leaning = judge_rates.LEANS_A_LITTLE
    assert leaning.true_lean == pytest.approx(0.05)
    assert judge_rates.preferred(leaning, 400, draws=10, allow=False) >= 0.2
    assert judge_rates.preferred(leaning, 400, draws=10) == 0


def stated(name: str) -> list[float]:
    """The percentages in the page's rows of this name."""
    (line,) = re.findall(
        rf"^\| {re.escape(name)} \|(?: [^|]*points \|)? ((?:[\d.]+ \| ){{5}}[\d.]+) \|$", DOCUMENT, re.MULTILINE
    )
    return [float(cell) for cell in line.split(" | ")]


def compare(name: str, judge: SimulatedJudge, draws: int) -> None:
    _, *cells = stated(name)
    for count, percent in list(zip(judge_rates.COUNTS, cells, strict=True))[:: 1 if draws == judge_rates.DRAWS else 3]:
        share = min(max(percent / 100, 1 / judge_rates.DRAWS), 1 - 1 / judge_rates.DRAWS)
        error = 4 * math.sqrt(share * (1 - share) * (1 / draws + 1 / judge_rates.DRAWS)) + 1 / draws
        found = counted(judge, count, draws=draws, seed=count + 7)
        assert abs(found - percent / 100) <= error, (name, count, found, percent)


def test_the_pages_tables_are_what_comes_out() -> None:
    for name in ("κ = 0.5", "κ = 0.7", "κ = 0.8"):
        compare(name, judge_rates.UNBIASED[name], 100)
    compare("10% to the candidate, else κ = 0.9", judge_rates.LEANING["10% to the candidate, else κ = 0.9"], 100)


@pytest.mark.slow
def test_the_pages_whole_tables_are_what_comes_out() -> None:
    for name, judge in (judge_rates.UNBIASED | judge_rates.LEANING).items():
        compare(name, judge, judge_rates.DRAWS)
