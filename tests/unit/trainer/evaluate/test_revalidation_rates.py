"""How often revalidation demotes an unharmed version, and finds a harmed one: as EVALUATION.md says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from trainer.evaluate import revalidation_rates as rates

DOCUMENT = Path("trainer/evaluate/EVALUATION.md").read_text()
DRAWS = 300


@pytest.mark.parametrize("count", rates.COUNTS)
@pytest.mark.parametrize("flips", [0.01, 0.03])
def test_an_unharmed_version_is_hardly_ever_demoted_within_a_year(count: int, flips: float) -> None:
    assert rates.demoted(rates.looks(count, flips=flips, draws=DRAWS)) <= 0.01


def test_a_loss_of_twenty_points_is_found_and_one_of_ten_with_more_questions() -> None:
    for count, loss, least in ((50, 0.2, 0.75), (100, 0.2, 0.95), (200, 0.1, 0.9), (400, 0.1, 0.98)):
        found = rates.first_looks(rates.looks(count, flips=rates.FLIPPED, loss=loss, draws=DRAWS))
        assert found["broken"] >= least, (count, loss, found)
        assert found["kept"] <= 0.01, (count, loss, found)


def test_the_same_answers_are_always_kept() -> None:
    assert rates.first_looks(rates.looks(50, flips=0.0, draws=50)) == {"kept": 1, "open": 0, "broken": 0}


def stated(name: str) -> list[tuple[float, list[float]]]:
    """Percent of a row of the page's tables: demoted within a year, and the states at the first revalidation."""
    (line,) = re.findall(rf"^\| {name} \| (.+) \|$", DOCUMENT, re.MULTILINE)
    cells = [re.fullmatch(r"([\d.e-]+) \((.+)\)", cell) for cell in line.split(" | ")]
    return [(float(cell[1]), [float(share) for share in cell[2].split(" / ")]) for cell in cells if cell is not None]


def compare(name: str, flips: float, loss: float, draws: int) -> None:
    cells = stated(name)
    assert len(cells) == len(rates.COUNTS)
    for count, (year, first) in zip(rates.COUNTS, cells, strict=True):
        states = rates.looks(count, flips=flips, loss=loss, draws=draws, seed=count + 7)
        found = [rates.demoted(states), *rates.first_looks(states).values()]
        for share, percent in zip(found, [year, *first], strict=True):
            assert abs(100 * share - percent) <= error_of(percent / 100, draws), (name, count, found, percent)


def error_of(share: float, draws: int) -> float:
    """Four standard errors of the difference of two simulated shares, in percent, and one draw of each."""
    share = min(max(share, 1 / rates.DRAWS), 1 - 1 / rates.DRAWS)
    return 100 * (4 * math.sqrt(share * (1 - share) * (1 / draws + 1 / rates.DRAWS)) + 1 / draws + 1 / rates.DRAWS)


@pytest.mark.parametrize("flips", rates.FLIPS)
def test_the_pages_rows_of_unharmed_versions_are_what_comes_out(flips: float) -> None:
    compare(f"{100 * flips:.0f}%", flips, 0.0, DRAWS)


@pytest.mark.parametrize("loss", rates.LOSSES)
def test_the_pages_rows_of_harmed_versions_are_what_comes_out(loss: float) -> None:
    compare(f"{100 * loss:.0f} points", rates.FLIPPED, loss, DRAWS)
