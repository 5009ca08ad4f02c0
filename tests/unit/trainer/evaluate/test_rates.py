"""How often the check against `live` lets a worse version pass, and an equal one: as STATISTICS.md says."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.evaluate import rates
from trainer.evaluate.forgetting import Budget
from trainer.evaluate.suites.general import general_suite
from trainer.evaluate.verdict import LIVE_MARGIN

DRAWS = 300
DOCUMENT = "".join(Path(f"trainer/evaluate/{name}.md").read_text() for name in ("STATISTICS", "ADVERSARIES"))


@pytest.mark.parametrize("count", [50, 100])
@pytest.mark.parametrize("related", [rates.RELATED, None])
def test_a_version_that_is_ten_points_worse_hardly_ever_passes(count: int, related: float | None) -> None:
    assert rates.shares(-0.10, count, related=related, draws=DRAWS)["kept"] <= 0.02


@pytest.mark.parametrize("count", [50, 100, 400])
def test_one_that_is_worse_by_the_margin_passes_as_rarely_as_the_confidence_says(count: int) -> None:
    assert rates.shares(-LIVE_MARGIN, count, draws=DRAWS)["kept"] <= 0.06


def test_an_equal_one_passes_where_there_are_examples_enough_and_a_better_one_sooner() -> None:
    assert rates.shares(0.0, 400, draws=DRAWS)["kept"] >= 0.6
    assert rates.shares(0.05, 100, draws=DRAWS)["kept"] >= 0.55
    assert rates.shares(0.0, 100, draws=DRAWS)["broken"] == 0


def test_six_retrains_that_are_each_worse_do_not_wear_live_down() -> None:
    assert rates.chain(-0.05, 100, draws=100) >= 0.77
    assert rates.chain(-0.10, 100, draws=100) >= 0.78


def test_random_training_answers_rarely_pass_the_reassigned_control_and_the_sample_voice_does() -> None:
    assert rates.parrots(30, draws=20) <= 0.1
    assert rates.honest(50, draws=20) >= 0.8


def test_a_true_loss_of_eight_points_is_hardly_ever_kept_and_no_loss_is_kept_mostly() -> None:
    count = len(general_suite().choices)
    for differ in rates.DISCORDANCES:
        assert rates.forgetting_shares(0.08, count, differ, draws=DRAWS)["kept"] <= 0.025
        assert rates.forgetting_shares(0.05, count, differ, draws=DRAWS)["kept"] <= 0.06
        assert rates.forgetting_shares(0.0, count, differ, draws=DRAWS)["kept"] >= 0.6
    # the 103 items of earlier versions cannot show it, and their estimate alone kept such a loss
    assert rates.forgetting_shares(0.0, rates.EARLIER_ITEMS, 0.07, draws=DRAWS)["kept"] <= 0.6
    assert rates.kept_by_estimate(0.08, rates.EARLIER_ITEMS, 0.10) == pytest.approx(0.19, abs=0.02)


@pytest.mark.parametrize("place", [0, 1])
def test_the_pages_tables_of_forgetting_are_what_comes_out(place: int) -> None:
    suite, budget = general_suite(), Budget()
    count, allowed, losses, discordances = (
        (len(suite.choices), budget.accuracy, rates.TRUE_LOSSES, rates.DISCORDANCES),
        (len(suite.chats), budget.chat, rates.CHAT_LOSSES, rates.CHAT_DISCORDANCES),
    )[place]
    (table,) = re.findall(rf"^\| true loss, {count} items [\w ]+ \|.*\n.*\n((?:\| \d+ points \|.*\n)+)", DOCUMENT, re.M)
    rows = re.findall(r"^\| (\d+) points \| (.+) \|$", table, re.MULTILINE)
    assert [int(points) for points, _ in rows] == [round(100 * loss) for loss in losses]
    for loss, (_, cells) in zip(losses, rows, strict=True):
        for differ, cell in zip(discordances, cells.split(" | "), strict=True):
            found = rates.forgetting_shares(loss, count, differ, budget=allowed, draws=DRAWS, seed=count + 7)
            for state, percent in zip(rates.SHOWN, map(float, cell.split(" / ")), strict=True):
                away = abs(100 * found[state] - percent)
                assert away <= error_of(percent / 100, DRAWS), (loss, differ, state, found[state], percent)


def test_the_pages_power_of_forgetting_is_what_comes_out() -> None:
    text = " ".join(DOCUMENT.split())
    stated_shares = re.search(r"keeps plain text in (\d+)%, chats in (\d+)%, and both in (\d+)%", text)
    assert stated_shares is not None
    for share, percent in zip(rates.kept_together(draws=2000, seed=3), stated_shares.groups(), strict=True):
        assert 100 * share == pytest.approx(float(percent), abs=4.5)


def test_a_loss_of_eight_points_in_chats_is_kept_as_often_as_the_page_says() -> None:
    assert 0.08 in rates.CHAT_LOSSES
    stated_shares = re.search(r"in a chat in (\d+)% to (\d+)%, since its budget", " ".join(DOCUMENT.split()))
    assert stated_shares is not None
    low, high = (float(percent) / 100 for percent in stated_shares.groups())
    count, budget = len(general_suite().chats), Budget().chat
    for differ in rates.CHAT_DISCORDANCES:
        share = rates.forgetting_shares(0.08, count, differ, budget=budget, draws=2000, seed=5)["kept"]
        assert low - 0.03 <= share <= high + 0.03


def stated() -> dict[tuple[str, str], list[dict[str, float]]]:
    """The page's table of single versions: percent of each state, by row and number of examples."""
    rows = re.findall(r"^\| ([\w ]+) \| (\d+)% \| (.+) \|$", DOCUMENT, re.MULTILINE)
    return {
        (name, differ): [
            dict(zip(rates.SHOWN, (float(share) for share in cell.split(" / ")), strict=True))
            for cell in cells.split(" | ")
        ]
        for name, differ, cells in rows
        if cells.count(" / ") == 8
    }


def row(change: float, related: float | None) -> tuple[str, str]:
    name = "equal" if not change else f"{abs(100 * change):.0f} points {'better' if change > 0 else 'worse'}"
    return name, f"{100 * rates.differing(rates.LIVE_RIGHT, change, related):.0f}"


def error_of(share: float, draws: int) -> float:
    """Four standard errors of the difference of two simulated shares, in percent, and one draw of each."""
    share = min(max(share, 1 / rates.DRAWS), 1 - 1 / rates.DRAWS)
    return 100 * (4 * math.sqrt(share * (1 - share) * (1 / draws + 1 / rates.DRAWS)) + 1 / draws + 1 / rates.DRAWS)


def compare(change: float, related: float | None, counts: Sequence[int], draws: int) -> None:
    cells = stated()[row(change, related)]
    for count in counts:
        found = rates.shares(change, count, related=related, draws=draws, seed=count + 7)
        for state, percent in cells[rates.COUNTS.index(count)].items():
            away = abs(100 * found[state] - percent)
            assert away <= error_of(percent / 100, draws), (change, related, count, state, found[state], percent)


@pytest.mark.parametrize("change", rates.CHANGES)
def test_the_pages_table_is_what_comes_out(change: float) -> None:
    assert len(stated()) == 2 * len(rates.CHANGES)
    compare(change, rates.RELATED, (50, 100, 400), DRAWS)
    compare(change, None, (100,), DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("related", [rates.RELATED, None])
@pytest.mark.parametrize("change", rates.CHANGES)
def test_the_pages_whole_table_is_what_comes_out(change: float, related: float | None) -> None:
    compare(change, related, rates.COUNTS, rates.DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("related", [rates.RELATED, None])
@pytest.mark.parametrize("change", rates.CHANGES[2:])
def test_the_pages_chains_are_what_comes_out(change: float, related: float | None) -> None:
    name, differ = row(change, related)
    (line,) = re.findall(rf"^\| {name} \| {differ}% \| ([\d. |]+) \|$", DOCUMENT, re.MULTILINE)
    for count, percent in zip(rates.COUNTS, line.split(" | "), strict=True):
        found = rates.chain(change, count, related=related, seed=count + 7)
        # a chain ends between 80 and 80 less six changes, most of them within two
        error = 4 * 100 * max(abs(change), 0.001) * 2 * math.sqrt(2 / rates.CHAINS)
        assert abs(100 * found - float(percent)) <= error + 0.05, (count, found, percent)


@pytest.mark.slow
def test_the_pages_rates_of_parrots_and_of_the_voice_are_what_comes_out() -> None:
    for name, share in (
        ("random training answers", rates.parrots),
        ("the sample voice's", rates.honest),
        ("the sample voice's, without the questions' words", rates.honest_beyond_question),
    ):
        (line,) = re.findall(rf"^  \| {name} \| ([\d. |]+) \|$", DOCUMENT, re.MULTILINE)
        for count, percent in zip(rates.VOICES, line.split(" | "), strict=True):
            stated_share = min(max(float(percent) / 100, 0.01), 0.99)
            error = 4 * math.sqrt(2 * stated_share * (1 - stated_share) / rates.PARROTS)
            assert abs(share(count, seed=11) - float(percent) / 100) <= error + 0.01, (name, count)


def test_what_the_page_says_of_a_better_version_is_in_its_table() -> None:
    text = " ".join(DOCUMENT.split())
    said = re.search(r"passes at 100 examples in (\d+)% of cases .* the questions, and in (\d+)% where", text)
    assert said is not None
    for percent, related in zip(said.groups(), (rates.RELATED, None), strict=True):
        assert stated()[row(0.05, related)][1]["kept"] == pytest.approx(float(percent), abs=0.5)
