"""kill -9 at random moments of a gateway that is written to: short forms of `python -m loadtests.kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.kills.__main__ import kill_often


@pytest.mark.parametrize(("kills", "seed"), [(10, 1), (40, 2)])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, kills: int, seed: int) -> None:
    result = kill_often(tmp_path, kills=kills, seed=seed)
    assert result.sound, result.report()
    acknowledged = dict(result.acknowledged)
    evaluations = acknowledged.pop("evaluations")
    assert all(acknowledged.values()), result.report()
    assert evaluations or kills < 40, result.report()
    assert result.kills.total() >= kills
