"""Not one token of a wrong adapter or version while everything changes: a short form of `python -m loadtests.churn`."""

from __future__ import annotations

from pathlib import Path

from loadtests.churn.__main__ import Plan, churn

PLAN = Plan(requests=900, adapters=16, hostile=12, kills=2, changes=6)


def test_no_answer_is_of_another_adapter_or_version(tmp_path: Path) -> None:
    result = churn(tmp_path, PLAN)
    assert result.sound, result.report()
    assert result.kills == PLAN.kills
    assert result.answers.statuses["adapter 200"] > PLAN.requests / 4, result.report()
    assert result.answers.statuses["base 200"], result.report()
    assert result.changes["promote"], result.report()
    assert result.changes.total() >= PLAN.changes, result.report()
    assert len(result.damages) == 6
    assert result.cache_hits > 0, "the prefix cache was not used, so it has not been looked at"
