"""Fleiss' kappa of several reviewers, against the textbook, another implementation and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.inter_rater import fleiss_kappa

from trainer.errors import EvaluationInvalid
from trainer.evaluate.statistics.agreement import reviewer_agreement

OPTIONS = ("candidate", "tie", "base")


def votes(rng: np.random.Generator, pairs: int, reviewers: int, repeated: float) -> list[list[str]]:
    """Reviewers who see what there is to see with this probability, and else choose at random with the same shares."""
    shares = [0.45, 0.2, 0.35]
    truth = rng.choice(3, size=(pairs, 1), p=shares)
    guesses = rng.choice(3, size=(pairs, reviewers), p=shares)
    seen = rng.random((pairs, reviewers)) < repeated
    return [[OPTIONS[code] for code in row] for row in np.where(seen, truth, guesses)]


def table(pairs: list[list[str]]) -> np.ndarray:
    return np.array([[row.count(option) for option in OPTIONS] for row in pairs])


def test_it_is_that_of_fleiss_paper_and_of_statsmodels() -> None:
    # two reviewers: half of four pairs agreed; shares of 3/8, 1/8 and 4/8 make 26/64 by chance
    pairs = [["candidate"] * 2, ["candidate", "base"], ["tie", "base"], ["base"] * 2]
    found = reviewer_agreement(pairs, confidence=0.95)
    assert found.observed == 0.5
    assert found.kappa == pytest.approx((0.5 - 26 / 64) / (1 - 26 / 64))
    three = votes(np.random.default_rng(1), 60, 3, 0.7)
    assert reviewer_agreement(three, confidence=0.95).kappa == pytest.approx(float(fleiss_kappa(table(three))))


def test_its_interval_is_no_narrower_than_a_jackknifes() -> None:
    pairs = votes(np.random.default_rng(2), 80, 3, 0.7)
    found = reviewer_agreement(pairs, confidence=0.95)
    without = [float(fleiss_kappa(table(pairs[:at] + pairs[at + 1 :]))) for at in range(80)]
    error = float(np.sqrt(79 * np.var(without)))
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 >= 1.96 * error * 0.98


def test_its_interval_misses_no_more_often_than_it_says() -> None:
    """Reviewers who see the truth with probability p agree beyond chance on p² of the pairs."""
    rng, repeated = np.random.default_rng(3), 0.8
    missed = 0
    for _ in range(400):
        found = reviewer_agreement(votes(rng, 50, 2, repeated), confidence=0.95)
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= repeated**2 <= found.high
    assert missed <= 28, "5% of 400 are 20; more than 28 come in one of 25 runs"


def test_reviewers_who_always_agree_have_an_interval_all_the_same() -> None:
    found = reviewer_agreement([["candidate"] * 2, ["base"] * 2] * 10, confidence=0.95)
    assert (found.kappa, found.high, found.observed) == (1, 1, 1)
    assert found.low is not None
    assert 0.6 < found.low < 0.7  # Wilson's interval of 20 in 20 ends at 0.839, where chance agrees on half
    assert reviewer_agreement([["tie"] * 3] * 4, confidence=0.95).kappa is None
    one_pair = reviewer_agreement([["tie", "base"]], confidence=0.95)
    assert one_pair.low is not None
    assert (one_pair.kappa, one_pair.low) == (-1, -1)


@pytest.mark.parametrize("pairs", [[], [["tie"]], [["tie", "base"], ["tie", "base", "base"]]])
def test_what_has_no_agreement_is_refused(pairs: list[list[str]]) -> None:
    with pytest.raises(EvaluationInvalid, match="equally many verdicts, two or more, on each pair"):
        reviewer_agreement(pairs, confidence=0.95)
