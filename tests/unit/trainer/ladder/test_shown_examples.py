"""Which held-out examples a ladder's report opens each rung to."""

from __future__ import annotations

import pytest

from tests.unit.trainer.ladder.rungs_measured import rows, scored
from trainer.ladder.reporting import shown_examples

BASE = (0.5, 0.5, 0.5, 0.5, 0.5)
RUNG = (0.9, 0.4, 0.6, 0.5, 0.7)


def test_a_rung_is_opened_to_its_worst_its_median_and_its_best_example_against_the_base() -> None:
    measured = rows(scored({"base": BASE, "instructions": RUNG}))
    assert shown_examples(measured, "instructions") == (1, 2, 0)


@pytest.mark.parametrize("advised", [None, "base"])
def test_without_an_advised_rung_above_the_base_the_examples_are_those_of_the_highest_score(advised: str) -> None:
    measured = rows(scored({"base": BASE, "instructions": RUNG, "examples": BASE}))
    assert shown_examples(measured, advised) == (1, 2, 0)  # type: ignore[arg-type]


def test_of_two_examples_both_are_shown() -> None:
    assert sorted(shown_examples(rows(scored({"base": (0.0, 1.0)})), None)) == [0, 1]


def test_a_base_that_scores_most_is_not_compared_with_itself() -> None:
    measured = rows(scored({"base": (0.9, 0.9, 0.9), "instructions": (0.5, 0.9, 0.1)}))
    assert shown_examples(measured, "base") == (2, 0, 1)
