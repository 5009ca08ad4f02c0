"""Max-min fairness of places, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission.queued import Stage
from service.admission.small_flows import fill
from tests.unit.service.admission.world import ClockedScheduler

pytestmark = pytest.mark.usefixtures("scheduler_class")


@pytest.mark.parametrize(
    ("demands", "capacity", "level"),
    [
        ([2, 2, 2, 2, 64], 64, 56),
        ([20, 20, 64], 30, 10),
        ([1, 64, 64], 31, 15),
        ([3], 10, 10),
        ([], 10, 10),
    ],
)
def test_the_level(demands: list[int], capacity: float, level: float) -> None:
    assert fill(demands, capacity) == level


@given(st.lists(st.integers(1, 50), max_size=30).map(sorted), st.integers(1, 200))
def test_the_level_gives_away_all_there_is_and_no_more(demands: list[int], capacity: int) -> None:
    level = fill(demands, capacity)
    given_away = sum(min(demand, level) for demand in demands)
    assert given_away == pytest.approx(min(capacity, sum(demands)))


def test_more_flows_than_places_are_all_no_small_ones() -> None:
    clocked = ClockedScheduler(width=8, common=4, slots=None)
    entries = [clocked.offer(f"a{number}") for number in range(20)]
    clocked.admit()
    assert [entry.stage for entry in entries].count(Stage.ADMITTED) == 8, "they were few at first"
    inside = [entry for entry in entries if entry.stage is Stage.ADMITTED]
    assert [clocked.leave(entry) for entry in inside[:4]] == [[], [], [], []], "beyond the common places nobody comes"
    assert len(clocked.leave(inside[4])) == 1


def test_every_leaf_of_a_small_project_is_small() -> None:
    clocked = ClockedScheduler(width=16, common=8, slots=None)
    for _ in range(40):
        clocked.offer("flood", project="large")
    entries = [clocked.offer(f"a{number}", project="small", key=f"k{number}") for number in range(4)]
    assert clocked.admit() == entries
