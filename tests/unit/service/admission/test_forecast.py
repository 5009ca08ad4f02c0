"""Forecasts of the wait: whoever would get a turn in time is let into the queue."""

from __future__ import annotations

import pytest

from service.admission.queued import QueuedRequest, Stage
from service.errors import Unavailable
from tests.unit.service.admission.world import ClockedScheduler, request

pytestmark = pytest.mark.usefixtures("scheduler_class")

STAY_S = 10.0


def busy(clocked: ClockedScheduler, count: int, stay_s: float = STAY_S) -> None:
    """So many requests come and go, each after ``stay_s``, until nothing is left."""
    places = clocked.scheduler.policy.common
    for _ in range(0, count, places):
        entered = [offer(clocked, 1000.0, prompt=1) for _ in range(places)]
        clocked.start(*entered)
        clocked.now += stay_s
        for entry in entered:
            clocked.leave(entry)


def offer(clocked: ClockedScheduler, max_wait_s: float, adapter: str | None = None, **fields: object) -> QueuedRequest:
    """As the queue does: offered, and then whoever may enter is let in."""
    entry = clocked.scheduler.offer(request(adapter, **fields), clocked.now, max_wait_s)  # type: ignore[arg-type]
    clocked.admit()
    return entry


def fill_queue(clocked: ClockedScheduler, count: int, **fields: object) -> list[QueuedRequest]:
    return [offer(clocked, 1e9, **fields) for _ in range(count)]  # type: ignore[arg-type]


def test_a_burst_after_idle_time_is_not_measured_by_the_few_that_read_their_prompts() -> None:
    """Of 8 places only 2 are taken until the first prompts have been read; then all are."""
    clocked = ClockedScheduler(width=8, common=8, slots=None, prefill=200)
    busy(clocked, 80)
    burst = fill_queue(clocked, 30, prompt=100)
    assert sum(entry.stage is Stage.ADMITTED for entry in burst) == 2
    # 28 ahead leave within 40 s of 8 places
    assert offer(clocked, 60.0, prompt=100).stage is Stage.WAITING
    with pytest.raises(Unavailable, match="might wait"):
        offer(clocked, 20.0, prompt=100)


def test_one_slow_request_does_not_make_others_be_refused() -> None:
    clocked = ClockedScheduler(width=4, common=4, slots=None)
    busy(clocked, 100, stay_s=1.0)
    slow = offer(clocked, 1000.0)
    for _ in range(600):
        busy_one = offer(clocked, 1000.0)
        clocked.now += 1.0
        clocked.leave(busy_one)
    clocked.leave(slow)  # after 600 s
    fill_queue(clocked, 44)  # 4 in the engine, 40 wait: 10 s
    assert offer(clocked, 30.0).stage is Stage.WAITING


def test_an_engine_that_becomes_slow_is_noticed() -> None:
    clocked = ClockedScheduler(width=4, common=4, slots=None)
    busy(clocked, 100, stay_s=1.0)
    busy(clocked, 160, stay_s=30.0)
    fill_queue(clocked, 44)  # 40 wait: 300 s
    with pytest.raises(Unavailable, match="might wait"):
        offer(clocked, 120.0)


def test_who_needs_no_slot_does_not_wait_behind_those_who_wait_for_one() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=2, turn_s=1000.0)
    busy(clocked, 80)
    held = [offer(clocked, 1e9, "a"), offer(clocked, 1e9, "b")]
    waiting = [offer(clocked, 1e9, f"other-{number}") for number in range(50)]
    assert {entry.stage for entry in held} == {Stage.ADMITTED}
    assert {entry.stage for entry in waiting} == {Stage.WAITING}
    assert offer(clocked, 20.0).stage is Stage.ADMITTED, "the base"
    assert offer(clocked, 20.0, "a").stage is Stage.ADMITTED, "it has a slot"


def test_a_newcomer_is_not_counted_behind_flows_that_it_goes_before() -> None:
    """40 projects have had tokens, and each has one in the engine and one that waits; the 41st has had nothing."""
    clocked = ClockedScheduler(width=40, common=40, slots=None)
    names = [f"p{number}" for number in range(40)]
    for turn in range(3):
        entered = [offer(clocked, 1e9, project=name) for name in names]
        if turn == 2:
            break
        clocked.now += STAY_S
        for number, entry in enumerate(entered):
            clocked.leave(entry, 100 * (number + 1))
    waiting = [offer(clocked, 1e9, project=name) for name in names]
    assert {entry.stage for entry in waiting} == {Stage.WAITING}
    newcomer = offer(clocked, STAY_S / 2, project="new")
    assert newcomer.stage is Stage.WAITING
    with pytest.raises(Unavailable, match="might wait"):
        offer(clocked, STAY_S / 2, project=names[-1])
    assert clocked.leave(entered[-1]) == [newcomer]


def test_a_wrong_forecast_is_corrected_although_most_are_refused() -> None:
    """The engine was slow: what waits in front is few, but each that leaves corrects the forecast."""
    clocked = ClockedScheduler(width=4, common=4, slots=None)
    busy(clocked, 100, stay_s=100.0)
    for _ in range(60):
        running = clocked.scheduler.in_flight
        assert running <= 4
        entries = fill_queue(clocked, 4)
        clocked.now += 1.0
        for entry in entries:
            clocked.leave(entry)
    fill_queue(clocked, 44)
    assert offer(clocked, 60.0).stage is Stage.WAITING
