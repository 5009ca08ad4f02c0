"""How often revalidation demotes an unharmed version, and finds a harmed one: as REVALIDATION.md says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from trainer.evaluate import revalidation_rates as rates

DOCUMENT = Path("trainer/evaluate/REVALIDATION.md").read_text()
DRAWS = 150


@pytest.mark.parametrize("count", [50, 100])
def test_an_unharmed_version_is_hardly_ever_demoted_within_a_year(count: int) -> None:
    assert rates.demoted(rates.looks(count, flips=0.03, draws=400)) <= 0.01


def test_a_loss_of_twenty_points_is_found_and_one_of_ten_with_more_questions() -> None:
    for count, loss, least in ((50, 0.2, 0.7), (100, 0.2, 0.95), (200, 0.1, 0.9)):
        found = rates.first_looks(rates.looks(count, flips=rates.FLIPPED, loss=loss, draws=DRAWS))
        assert found["broken"] >= least, (count, loss, found)
        assert found["kept"] <= 0.02, (count, loss, found)


def test_the_same_answers_are_always_kept() -> None:
    assert rates.first_looks(rates.looks(50, flips=0.0, draws=50)) == {"kept": 1, "open": 0, "broken": 0}


def stated(name: str) -> list[tuple[float, list[float]]]:
    """Percent of a row of the page's tables: demoted within a year, and the states at the first revalidation."""
    (line,) = (row for row in re.findall(rf"^\| {name} \| (.+) \|$", DOCUMENT, re.MULTILINE) if "(" in row)
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
    """Four standard errors of the difference of two simulated shares, in percent, and two draws of each."""
    share = min(max(share, 1 / rates.DRAWS), 1 - 1 / rates.DRAWS)
    return 100 * (4 * math.sqrt(share * (1 - share) * (1 / draws + 1 / rates.DRAWS)) + 2 / draws + 2 / rates.DRAWS)


def test_a_row_of_each_of_the_pages_tables_is_what_comes_out() -> None:
    compare("2%", 0.02, 0.0, DRAWS)
    compare("10 points", rates.FLIPPED, 0.10, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("flips", rates.FLIPS)
def test_the_pages_rows_of_unharmed_versions_are_what_comes_out(flips: float) -> None:
    compare(f"{100 * flips:.0f}%", flips, 0.0, rates.DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("loss", rates.LOSSES)
def test_the_pages_rows_of_harmed_versions_are_what_comes_out(loss: float) -> None:
    compare(f"{100 * loss:.0f} points", rates.FLIPPED, loss, rates.DRAWS)


@pytest.mark.slow
def test_the_pages_rows_of_graded_scores_are_what_comes_out() -> None:
    rows = re.findall(
        r"^\| (?:unharmed, (\d+)% of|(\d+) points lost, at) [^|]* \| ([\d. |]+) \|$", DOCUMENT, re.MULTILINE
    )
    assert len(rows) == 4
    for changed, loss, cells in rows:
        changes = float(changed) / 100 if changed else rates.FLIPPED
        for count, percent in zip(rates.COUNTS, cells.split(" | "), strict=True):
            found = rates.graded(count, changed=changes, loss=float(loss or 0) / 100, seed=count + 7)
            share = min(max(float(percent) / 100, 0.0025), 0.9975)
            error = 4 * math.sqrt(2 * share * (1 - share) / rates.GRADED_DRAWS)
            assert abs(found - float(percent) / 100) <= error, (changed, loss, count, found)
