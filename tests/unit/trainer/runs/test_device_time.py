"""Device time by hour: nothing is lost or counted twice, whatever hours and phases a worker's time spans."""

from __future__ import annotations

import pytest

from trainer.runs.device_time import HOUR_S, by_hour

NOON = 500 * HOUR_S


@pytest.mark.parametrize(
    ("start", "end", "judging_since", "expected"),
    [
        (NOON + 10, NOON + 70, None, [(NOON, 60, 0)]),
        (NOON + 10, NOON + 70, NOON + 50, [(NOON, 40, 20)]),
        (NOON + 10, NOON + 70, NOON, [(NOON, 0, 60)]),
        (NOON - 30, NOON + 10, None, [(NOON - HOUR_S, 30, 0), (NOON, 10, 0)]),
        (NOON - 30, NOON + 10, NOON - 20, [(NOON - HOUR_S, 10, 20), (NOON, 0, 10)]),
        (NOON - 30, NOON + 10, NOON + 4, [(NOON - HOUR_S, 30, 0), (NOON, 4, 6)]),
        (NOON, NOON, None, []),
        (NOON + 5, NOON + 5, NOON, []),
    ],
)
def test_a_workers_time_is_divided_by_hours_and_by_what_it_did(
    start: int, end: int, judging_since: int | None, expected: list[tuple[int, int, int]]
) -> None:
    divided = [row for row in by_hour(start, end, judging_since) if row[1] or row[2]]
    assert divided == [pytest.approx(row) for row in expected]
    assert sum(trained + judged for _, trained, judged in divided) == pytest.approx(end - start)
