"""Old jobs' curves: fewer points, the ends of epochs and every word among what stays."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainer.runs.test_database import new_run, opened
from trainer.runs import journal, records
from trainer.runs.housekeeping import clear_record
from trainer.runs.journal import MAX_POINTS, downsample, spread
from trainer.runs.protocol import WorkerEvent
from trainer.runs.state import Event

STEPS = 1500
EPOCH = 500


@given(st.lists(st.integers(), unique=True, max_size=60).map(sorted), st.integers(2, 20))
def test_a_spread_is_even_and_keeps_both_ends(numbers: list[int], most: int) -> None:
    found = spread(numbers, most)
    assert len(found) == len(set(found)) == min(len(numbers), most)
    if numbers:
        assert (found[0], found[-1]) == (numbers[0], numbers[-1])
    gaps = [numbers.index(b) - numbers.index(a) for a, b in itertools.pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def written(db: sa.Connection, number: int, steps: int) -> None:
    """A job with an event a step, and a word at the beginning and the end."""
    made = records.add(db, new_run(number), None)
    events = [
        WorkerEvent(
            at=float(step), type="metrics", message=f"Step {step}", data={"step": step, "ends_epoch": step % EPOCH == 0}
        )
        for step in range(1, steps + 1)
    ]
    journal.record_event(db, journal.append(db, journal.record_event(db, made, "first"), events, 0), "last")


@pytest.mark.parametrize("clear", ["downsample", "cleared"])
async def test_what_stays_of_a_long_job(tmp_path: Path, clear: str) -> None:
    database = await opened(tmp_path / "jobs.db")

    def work(db: sa.Connection) -> tuple[list[Event], list[Event], list[int]]:
        written(db, 1, STEPS)
        written(db, 2, 10)
        if clear == "downsample":
            assert downsample(db, "ftjob-1") == STEPS - MAX_POINTS - STEPS // EPOCH
            assert downsample(db, "ftjob-1") == downsample(db, "ftjob-2") == 0
        else:
            clear_record(db, "ftjob-1")
            assert records.get(db, "ftjob-1").next_event == STEPS + 3
        left = journal.following(db, "ftjob-1", after=0, limit=10_000)
        other = journal.following(db, "ftjob-2", after=0, limit=10_000)
        ends = [row.step for row in journal.newest_checkpoints(db, "ftjob-1", before=None, limit=10)]
        return left, other, ends

    left, other, ends = await database.run(work)
    await database.close()
    assert [event.message for event in left if event.type == "message"] == ["first", "last"]
    steps = [event.data["step"] for event in left if event.type == "metrics"]
    assert len(steps) == MAX_POINTS + STEPS // EPOCH
    assert set(steps) >= {1, *range(EPOCH, STEPS + 1, EPOCH)}
    assert next(event.number for event in left) == 1
    assert all(event.number == event.data["step"] + 1 for event in left if event.type == "metrics"), "an id moved"
    assert len(other) == 12
    assert ends == [1500, 1000, 500]
