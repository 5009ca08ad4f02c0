"""Intervals, noise, power and agreement: against published numbers, other computations, and simulation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from tests.unit.trainer.evaluate.worlds import seeded
from trainer.errors import EvaluationInvalid
from trainer.evaluate.statistics import noise, paired, power
from trainer.evaluate.statistics.agreement import agreement, lean


def test_tangos_interval_is_the_published_one() -> None:
    # airway hyper-responsiveness before and after transplantation: Fagerland, Lydersen and Laake (2014), table II
    low, high = paired.tango_interval(1, 7, 21, 0.95)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 60))
def test_tangos_interval_holds_the_estimate_and_agrees_with_mcnemar(wins: int, losses: int, ties: int) -> None:
    count = wins + losses + ties
    low, high = paired.tango_interval(wins, losses, count, 0.95)
    assert -1 <= low <= (wins - losses) / count <= high <= 1
    mirrored = paired.tango_interval(losses, wins, count, 0.95)
    assert (low, high) == pytest.approx((-mirrored[1], -mirrored[0]), abs=1e-7)
    if wins + losses:
        table = [[0, wins], [losses, 0]]
        significant = mcnemar(table, exact=False, correction=False).pvalue < 0.05
        assert (low > 0 or high < 0) == significant


@pytest.mark.parametrize(("wins", "losses", "count"), [(12, 2, 50), (3, 1, 30), (40, 55, 400), (9, 0, 33)])
def test_at_its_ends_the_score_statistic_is_the_quantile(wins: int, losses: int, count: int) -> None:
    # the likelihood under a given difference, maximised by search, in place of Tango's formula
    def statistic(difference: float) -> float:
        def unlikely(q: float) -> float:
            shares = (q + difference, q, 1 - 2 * q - difference)
            counts = (wins, losses, count - wins - losses)
            return -sum(n * np.log(max(p, 1e-300)) for n, p in zip(counts, shares, strict=True))

        lowest = max(0.0, -difference) + 1e-12
        q = optimize.minimize_scalar(
            unlikely, bounds=(lowest, (1 - difference) / 2 - 1e-12), method="bounded", options={"xatol": 1e-12}
        ).x
        return float((wins - losses - count * difference) / np.sqrt(count * (2 * q + difference - difference**2)))

    low, high = paired.tango_interval(wins, losses, count, 0.95)
    assert (statistic(low), statistic(high)) == pytest.approx((1.96, -1.96), abs=2e-3)


def test_where_nothing_differs_the_interval_is_as_wide_as_so_few_examples_make_it() -> None:
    z = float(stats.norm.ppf(0.975))
    for count in (10, 30, 1000):
        wide = z**2 / (count + z**2)
        assert paired.tango_interval(0, 0, count, 0.95) == pytest.approx((-wide, wide), abs=1e-6)
        same = paired.interval(np.full(count, 0.25), confidence=0.95, binary=False, seed=0)
        assert (same.low, same.high) == pytest.approx((0.25 - wide, 0.25 + wide), abs=1e-6)
    low, high = paired.tango_interval(30, 0, 30, 0.95)
    assert high == 1
    assert 0.7 < low < 0.9


def worse_on(count: int, differing: int) -> np.ndarray:
    """Graded scores that are 10 points worse on some examples, and the same on all others."""
    return np.array([-0.1] * differing + [0.0] * (count - differing))


@pytest.mark.parametrize("count", [35, 40, 60, 72, 100])
def test_one_small_difference_shows_no_more_than_none_does(count: int) -> None:
    lows = [
        paired.interval(worse_on(count, differing), confidence=0.95, binary=False, seed=0, resamples=400).low
        for differing in range(6)
    ]
    for low, next_low in pairwise(lows):
        assert abs(next_low - low) < 0.2 * -low, "one example more changes the interval little"
    assert lows[1] == pytest.approx(lows[0], rel=0.05)


@pytest.mark.parametrize("count", [40, 100])
def test_coverage_where_few_differ_and_one_in_thirty_by_all(count: int) -> None:
    random = seeded(3)
    rows = np.where(random.random((400, count)) < 0.03, -1.0, np.where(random.random((400, count)) < 0.03, -0.1, 0.0))
    bounds = [paired.interval(row, confidence=0.95, binary=False, seed=3, resamples=400) for row in rows]
    true = -0.03 - 0.97 * 0.03 * 0.1
    assert np.mean([each.low <= true <= each.high for each in bounds]) >= 0.95 - _three_errors(0.05, 400)


def test_where_all_differ_the_interval_is_not_wider_than_students_and_the_bootstraps() -> None:
    for row in seeded(4).normal(0.02, 0.045, (20, 30)):
        low, high = paired.sparse_interval(row, 0.95)
        one, other = paired.student_interval(row, 0.95)
        assert one <= low
        assert high <= other


def test_mcnemars_test_is_the_exact_one() -> None:
    assert paired.mcnemar_p(1, 7) == pytest.approx(2 * stats.binom.cdf(1, 8, 0.5))
    assert paired.mcnemar_p(0, 0) == 1


@pytest.mark.parametrize("count", [30, 60, 200])
@pytest.mark.parametrize(("wins", "losses"), [(0.05, 0.05), (0.12, 0.10), (0.3, 0.1), (0.5, 0.05)])
def test_coverage_of_right_or_wrong(count: int, wins: float, losses: float) -> None:
    drawn = seeded(count).multinomial(count, [wins, losses, 1 - wins - losses], 800)
    found = {(a, b): paired.tango_interval(a, b, count, 0.95) for a, b in {(int(a), int(b)) for a, b, _ in drawn}}
    bounds = np.array([found[int(a), int(b)] for a, b, _ in drawn])
    true = wins - losses
    assert np.mean((bounds[:, 0] <= true) & (true <= bounds[:, 1])) >= 0.95 - _three_errors(0.05, 800)
    assert np.mean(bounds[:, 0] > true) <= 0.025 + _three_errors(0.025, 800)


def _draw(kind: str, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    random = seeded(7)
    if kind == "free text":
        return random.beta(2, 4, shape) - random.beta(1.5, 6, shape), 2 / 6 - 1.5 / 7.5
    if kind == "equal arms":
        return random.beta(2, 4, shape) - random.beta(2, 4, shape), 0.0
    if kind == "few differ":
        return np.where(random.random(shape) < 0.1, random.uniform(-1, 1, shape), 0.0), 0.0
    return (random.random(shape) < 0.6) - random.beta(1, 30, shape), 0.6 - 1 / 31


@pytest.mark.slow
@pytest.mark.parametrize("count", [30, 100])
@pytest.mark.parametrize("kind", ["free text", "equal arms", "few differ", "against a control"])
def test_coverage_of_scores_between(kind: str, count: int) -> None:
    rows, true = _draw(kind, (400, count))
    bounds = [paired.interval(row, confidence=0.95, binary=False, seed=3, resamples=400) for row in rows]
    assert np.mean([each.low <= true <= each.high for each in bounds]) >= 0.95 - _three_errors(0.05, 400)
    assert np.mean([each.low > true for each in bounds]) <= 0.025 + _three_errors(0.025, 400)


def _three_errors(share: float, draws: int) -> float:
    """How far a simulation may lie from the truth."""
    return float(3 * np.sqrt(share * (1 - share) / draws))


def test_an_interval_is_the_same_whenever_it_is_made() -> None:
    row = seeded(1).uniform(-1, 1, 50)
    one, other = (paired.interval(row, confidence=0.95, binary=False, seed=5) for _ in range(2))
    assert one == other


def test_one_run_says_nothing_of_noise() -> None:
    assert noise.run_noise([np.ones(5)]) == noise.NO_RUNS
    bounds = paired.Bounds(0.1, 0.3, "m")
    assert noise.widen_by_noise(0.2, bounds, noise.combined_noise([noise.NO_RUNS, noise.NO_RUNS]), 0.95) is bounds


def test_a_shift_of_a_whole_run_is_found_and_the_answers_own_noise_is_not_mistaken_for_it() -> None:
    random = seeded(2)
    hardness = random.uniform(0.2, 0.8, 400)
    runs = [hardness + random.normal(0, 0.1, 400) + shift for shift in random.normal(0, 0.05, 40)]
    assert noise.run_noise(runs).variance == pytest.approx(0.05**2, rel=0.4)
    unshifted = [hardness + random.normal(0, 0.1, 400) for _ in range(40)]
    assert noise.run_noise(unshifted).variance < 0.01**2
    assert noise.run_noise(runs[:3]).degrees == 2


def test_later_runs_may_be_over_the_first_examples_alone() -> None:
    found = noise.run_noise([np.array([1.0, 0, 1, 1, 1]), np.array([1.0, 1])])
    assert found.changed == 0.5


@pytest.mark.parametrize(("shift", "runs"), [(0.0, 2), (0.03, 2), (0.03, 3)])
def test_coverage_with_noise_between_runs(shift: float, runs: int) -> None:
    random, count, held, widths = seeded(4), 100, 0, []
    for _ in range(300):
        gain, base = random.normal(0.1, 0.2, count), random.uniform(0.2, 0.6, count)
        arms = [
            [level + random.normal(0, 0.02, count) + random.normal(0, shift) for _ in range(runs)]
            for level in (base + gain, base)
        ]
        row = arms[0][0] - arms[1][0]
        bounds = paired.Bounds(*paired.student_interval(row, 0.95), "Student")
        wider = noise.widen_by_noise(
            float(row.mean()), bounds, noise.combined_noise([noise.run_noise(arm) for arm in arms]), 0.95
        )
        held += wider.low <= 0.1 <= wider.high
        widths.append((wider.high - wider.low) / (bounds.high - bounds.low))
    assert held / 300 >= 0.92
    assert min(widths) == 1 if shift == 0 else np.mean(widths) > 1.3


@pytest.mark.parametrize(("count", "wins", "losses"), [(60, 6, 6), (100, 30, 25), (200, 30, 24)])
def test_what_is_called_detectable_is_detected_as_often_as_is_said(count: int, wins: int, losses: int) -> None:
    seen = np.array([1.0] * wins + [-1.0] * losses + [0.0] * (count - wins - losses))
    spread, plan = power.score_variance(seen, binary=True), power.PowerPlan(0.02, 0.95, 0.8)
    difference = power.detectable(spread, count, plan)
    assert difference is not None
    discordant = max(spread.discordant or 0, difference)
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    drawn = seeded(count).multinomial(count, shares, 500)
    detected = np.mean([paired.tango_interval(int(a), int(b), count, 0.95)[0] > 0.02 for a, b, _ in drawn])
    assert 0.75 <= detected <= 0.92
    needed = power.examples_needed(spread, difference, plan)
    assert needed == pytest.approx(count, abs=1)


@pytest.mark.parametrize("count", [40, 150])
def test_the_same_for_scores_between(count: int) -> None:
    spread, plan = power.ScoreVariance(2 * 2 * 4 / (36 * 7)), power.PowerPlan(0.02, 0.95, 0.8)
    difference = power.detectable(spread, count, plan)
    assert difference is not None
    random = seeded(9)
    lows = [
        paired.interval(
            random.beta(2, 4, count) - random.beta(2, 4, count) + difference,
            confidence=0.95,
            binary=False,
            seed=1,
            resamples=300,
        ).low
        for _ in range(300)
    ]
    assert 0.7 <= np.mean(np.array(lows) > 0.02) <= 0.9


def test_arms_that_never_differed_are_not_taken_for_arms_that_cannot() -> None:
    spread = power.score_variance(np.zeros(30), binary=True)
    found = power.detectable(spread, 30, power.PowerPlan(0.02, 0.95, 0.8))
    assert found is not None
    assert found > 0.1


def test_where_all_are_alike_the_advice_is_the_number_at_which_the_interval_clears_the_bound() -> None:
    for bound in (-0.05, 0.02):
        needed = power.examples_needed_alike(0.0, power.PowerPlan(bound, 0.95, 0.8))
        assert needed is not None
        wide = [paired.sparse_interval(np.zeros(count), 0.95)[1] for count in (needed - 1, needed)]
        assert wide[1] < abs(bound) <= wide[0]
    assert power.examples_needed_alike(0.02, power.PowerPlan(0.02, 0.95, 0.8)) is None
    noisy = power.PowerPlan(-0.05, 0.95, 0.8, noise.RunNoise(0.04, 2, 0.1))
    assert power.examples_needed_alike(0.0, noisy) is None


def test_an_interval_that_holds_the_bound_calls_for_more_examples_than_there_are() -> None:
    def needed(low: float, high: float) -> int | None:
        middle = (low + high) / 2
        return power.examples_needed_by_interval(50, middle, paired.Bounds(low, high, "m"), 0.02)

    assert needed(0.03, 0.09) == 0
    assert needed(-0.09, 0.01) == 0
    assert needed(0.019, 0.1) == 53
    assert needed(0.01, 0.031) == pytest.approx(50 * 21**2, abs=1)  # half the interval is 21 times the gap
    assert needed(0.01, 0.03) is None


def test_too_few_examples_detect_nothing_and_noise_between_runs_is_not_outnumbered() -> None:
    plan = power.PowerPlan(0.02, 0.95, 0.8)
    assert power.detectable(power.ScoreVariance(1.0), 2, plan) is None
    noisy = power.PowerPlan(0.02, 0.95, 0.8, noise.RunNoise(0.04, 2, 0.1))
    assert power.examples_needed(power.ScoreVariance(0.1), 0.1, noisy) is None
    assert power.examples_needed(power.ScoreVariance(0.1), 0.021, plan) is None
    assert power.examples_needed(power.ScoreVariance(0.01), 0.9, plan) == 2
    fewer = power.examples_needed(power.ScoreVariance(0.1), 0.2, plan)
    more = power.examples_needed(power.ScoreVariance(0.1), 0.1, plan)
    assert fewer is not None
    assert more is not None
    assert fewer < more


def test_kappa_is_that_of_the_textbook() -> None:
    # Cohen (1960): 20 + 15 of 50 agreed, 25 and 30 said yes; kappa = (0.7 - 0.5) / (1 - 0.5)
    judge = ["yes"] * 25 + ["no"] * 25
    people = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = agreement(judge, people)
    assert (found.kappa, found.observed, found.pairs) == (pytest.approx(0.4), 0.7, 50)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 0.4 < found.high < 0.7


def test_kappas_interval_is_the_wider_of_the_large_sample_one_and_wilsons() -> None:
    judge = ["candidate"] * 40 + ["tie"] * 20 + ["base"] * 40
    people = ["candidate"] * 30 + ["tie"] * 20 + ["base"] * 50
    order = {"candidate": 0, "tie": 1, "base": 2}
    table = np.zeros((3, 3))
    for ours, theirs in zip(judge, people, strict=True):
        table[order[ours], order[theirs]] += 1
    reference = cohens_kappa(table)
    half = stats.norm.ppf(0.99) * float(np.sqrt(reference.var_kappa))
    low, high = proportion_confint(int(np.trace(table)), 100, alpha=0.02, method="wilson")
    chance = float(table.sum(axis=0) @ table.sum(axis=1)) / 100**2
    found = agreement(judge, people)
    assert found.kappa == pytest.approx(float(reference.kappa))
    assert found.low == pytest.approx(min(found.kappa - half, (low - chance) / (1 - chance)))
    assert found.high == pytest.approx(max(found.kappa + half, (high - chance) / (1 - chance)))


def test_a_leans_interval_is_no_narrower_than_few_differences_allow() -> None:
    judge, people = [1.0] * 10 + [0.5] * 90, [0.0] * 10 + [0.5] * 90
    found = lean(judge, people)
    student = paired.student_interval(paired.as_array(judge) - paired.as_array(people), 0.98)
    assert found.estimate == pytest.approx(0.1)
    assert found.low <= student[0]
    assert found.high > student[1] + 0.01
    alike = lean(people, people)
    assert (alike.estimate, alike.low, alike.high) == (
        0,
        pytest.approx(-alike.high),
        pytest.approx(5.412 / 105.412, abs=1e-3),
    )
    with pytest.raises(EvaluationInvalid, match="got 1 and 0"):
        lean([1.0], [])


def test_kappa_at_its_edges() -> None:
    full = agreement(["a", "b"] * 30, ["a", "b"] * 30)
    assert (full.kappa, full.high) == (1, 1)
    assert full.low is not None
    assert 0.8 < full.low < 0.9  # Wilson's interval of 60 in 60 ends at 0.917, where chance agrees on half
    nothing = agreement(["a"] * 50, ["a"] * 50)
    assert (nothing.kappa, nothing.low, nothing.observed) == (None, None, 1.0)
    with pytest.raises(EvaluationInvalid):
        agreement(["a"], [])
