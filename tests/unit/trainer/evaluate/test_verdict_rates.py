"""How often equal arms pass and better ones do: as the table of STATISTICS.md says, and as whole verdicts do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.trainer.evaluate.test_rates import error_of
from tests.unit.trainer.evaluate.worlds import QUICK, comparison, forgetting, form
from trainer.evaluate import rates, verdict_rates
from trainer.evaluate.verdict import Rules, decide

DRAWS = 300
DOCUMENT = Path("trainer/evaluate/STATISTICS.md").read_text()
WORDS = {"kept": "pass", "open": "not_enough_evidence", "broken": "fail"}


@pytest.mark.parametrize("count", verdict_rates.COUNTS)
def test_the_pages_table_is_what_comes_out(count: int) -> None:
    assert verdict_rates.DRAWS == rates.DRAWS, "error_of is for tables of so many draws"
    (line,) = re.findall(rf"^\| {count} examples \| (.+) \|$", DOCUMENT, re.MULTILINE)
    for gain, cell in zip(verdict_rates.GAINS, line.split(" | "), strict=True):
        shares = verdict_rates.shares(gain, count, draws=DRAWS, seed=count + 7)
        for (state, share), percent in zip(shares.items(), map(float, cell.split(" / ")), strict=True):
            assert abs(100 * share - percent) <= error_of(percent / 100, DRAWS), (gain, state, share, percent)


def test_the_command_prints_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict_rates.main(["--draws", "20"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {count} examples" for count in verdict_rates.COUNTS]
    assert {line.count(" / ") for line in lines[2:]} == {2 * len(verdict_rates.GAINS)}


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (8, 8), (20, 8), (30, 5), (5, 30)])
def test_a_state_is_the_word_of_a_whole_verdict_whose_other_checks_are_kept(wins: int, losses: int) -> None:
    right, equal = [1.0] * wins + [0.0] * losses, [1.0] * (100 - wins - losses)
    arms = comparison({"tuned": [right + equal], "base": [[1 - score for score in right] + equal]})
    verdict = decide(
        arms,
        candidate="tuned",
        bases=["base"],
        form=form(100),
        forgetting=forgetting(),
        rules=Rules(method=QUICK),
    )
    assert verdict.word == WORDS[verdict_rates.state(wins, losses, 100)]
