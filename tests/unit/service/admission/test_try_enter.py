"""What is admitted without the queue is what the queue would admit at once, and leaves everything as that does."""

from __future__ import annotations

import asyncio
import copy
import math
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admission.fair import FlowTree, _lift_tag
from service.admission.queue import AdmissionQueue
from service.admission.queued import QueuedRequest, Stage
from service.admission.request import AdmissionRequest
from service.admission.scheduler import Scheduler
from tests.unit.service.admission import test_properties
from tests.unit.service.admission.world import ClockedScheduler, Memory, policy, request


def state(value: Any, seen: dict[int, int] | None = None) -> Any:
    """All that an object holds, in order, as nested tuples; what is met again is a number."""
    seen = {} if seen is None else seen
    if value is None or callable(value) or isinstance(value, (int, float, str, Enum)):
        return None if callable(value) else value
    if isinstance(value, frozenset):
        return tuple(sorted(value))
    if isinstance(value, tuple):
        return tuple(state(part, seen) for part in value)
    if id(value) in seen:
        return ("seen", seen[id(value)])
    seen[id(value)] = len(seen)
    if isinstance(value, dict):
        return tuple((state(key, seen), state(part, seen)) for key, part in value.items())
    if isinstance(value, list):
        return tuple(state(part, seen) for part in value)
    names = [*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ())]
    return tuple((name, state(getattr(value, name), seen)) for name in names)


class PlainTree(FlowTree):
    """Charges a request in two steps: first the lift of all levels, from the leaf to the root, then the charge."""

    def serve(self, entry: QueuedRequest, *, waited: bool) -> None:
        flow = entry.leaf
        if not waited:
            _lift_tag(flow)
        entry.charge = max(1.0, entry.request.tokens * flow.ratio)
        while flow.parent is not None:
            flow.in_flight += 1
            flow.parent.virtual = max(flow.parent.virtual, flow.settled)
            flow.tag += entry.charge
            flow.pending += entry.charge
            flow = flow.parent
        flow.in_flight += 1


class ComparedScheduler(Scheduler):
    """Tries each request without the queue, and compares with what the queue makes of it, and a plainer tree."""

    def offer(self, request: AdmissionRequest, now: float, max_wait_s: float = math.inf) -> QueuedRequest:
        before = copy.deepcopy(self)
        entry = self.try_enter(request, now)
        if entry is not None:
            before.callers.__class__ = PlainTree
            expected = Scheduler.offer(before, request, now, max_wait_s)
            assert expected.stage is Stage.ADMITTED
            assert state(entry) == state(expected)
            assert state(self) == state(before)
            return entry
        assert state(self) == state(before), "nothing changes if it is not admitted"
        entry = super().offer(request, now, max_wait_s)
        if entry.stage is Stage.ADMITTED:
            assert (
                request.background
                or before.background.queued
                or not before.fits(entry)
                or before._is_cold(request.adapter or "")
                or not before.slots.spare
            ), "it was left to the queue for nothing"
        return entry


class Compared(test_properties.AdmissionQueue):
    """The gate under everything that can happen to it, compared at each request."""

    scheduler_class = ComparedScheduler


TestCompared = Compared.TestCase
TestCompared.settings = settings(max_examples=150, stateful_step_count=40)


VISIT = st.tuples(
    st.sampled_from("pqr"), st.sampled_from("kl"), st.sampled_from("ab"), st.integers(0, 500), st.integers(0, 2000)
)


@given(visits=st.lists(st.tuples(VISIT, st.integers(0, 3)), min_size=10, max_size=60))
@settings(max_examples=150)
def test_flows_that_come_and_go_without_a_queue_are_charged_alike(
    visits: list[tuple[tuple[str, str, str, int, int], int]],
) -> None:
    """Each stays until 0 to 3 others have come, so that new flows are lifted beside those that have been served."""
    scheduler = ComparedScheduler(policy(width=8, common=8, slots=None))
    inside: list[tuple[QueuedRequest, int]] = []
    for number, ((project, key, adapter, tokens, used), others) in enumerate(visits):
        now = number / 10
        show = request(adapter, project=project, key=key, tokens=tokens)
        entry = scheduler.offer(show, now)
        assert entry.stage is Stage.ADMITTED
        inside.append((entry, used))
        while len(inside) > others:
            entry, used = inside.pop(0)
            scheduler.leave(entry, used, now)
    assert scheduler.counts.admitted == len(visits)


def test_the_state_that_is_compared_holds_tags_and_slots() -> None:
    """The comparison sees a single tag, a tenure's count and the time of an idle flow."""
    clocked = ClockedScheduler()
    entry = clocked.offer()
    for change in (
        lambda scheduler: setattr(scheduler.callers.leaves()[0], "tag", 1.0),
        lambda scheduler: setattr(scheduler.slots.held["a"], "in_flight", 7),
        lambda scheduler: scheduler.callers._idle.update({scheduler.callers.leaves()[0]: 3.0}),
        lambda scheduler: setattr(scheduler.pace, "stay_s", 3.0),
    ):
        changed = copy.deepcopy(clocked.scheduler)
        assert state(changed) == state(clocked.scheduler)
        change(changed)
        assert state(changed) != state(clocked.scheduler)
    clocked.leave(entry)


def test_who_finds_no_queue_is_admitted_until_the_common_places_are_taken() -> None:
    scheduler = ClockedScheduler(slots=None).scheduler
    assert scheduler.try_enter(request("a"), 0.0)
    assert scheduler.try_enter(request(None), 0.0)
    assert scheduler.try_enter(request("a", project="small"), 0.0) is None, "the reserved places are the queue's"
    assert (scheduler.in_flight, scheduler.counts.admitted) == (2, 2)


@pytest.mark.parametrize(
    "others",
    [
        [],
        [request("a"), request("a"), request("a")],
        [request("a", background=True), request("a", background=True)],
    ],
    ids=["nobody", "callers wait", "background waits"],
)
def test_nobody_goes_past_those_who_wait(others: list[AdmissionRequest]) -> None:
    clocked = ClockedScheduler(width=3, common=2 if len(others) == 3 else 3, slots=None)
    for other in others:
        clocked.scheduler.offer(other, clocked.now)
    assert (clocked.scheduler.try_enter(request("a"), clocked.now) is None) == bool(clocked.scheduler.queued)
    assert bool(others) == bool(clocked.scheduler.queued)


@pytest.mark.parametrize("slots", [2, None])
def test_what_needs_more_than_a_place_is_left_to_the_queue(slots: int | None) -> None:
    scheduler = ClockedScheduler(Memory("cold"), slots=slots, prefill=100).scheduler
    assert scheduler.try_enter(request("cold"), 0.0) is None
    assert scheduler.try_enter(request("a", background=True), 0.0) is None
    first = scheduler.try_enter(request("a", prompt=60), 0.0)
    assert first is not None
    assert scheduler.try_enter(request("a", prompt=60), 0.0) is None, "the first prompt has not been read"
    assert scheduler.try_enter(request("a", prompt=40), 0.0)
    assert scheduler.counts.cold == 0


def test_an_adapter_that_drains_gets_no_more_though_those_who_wait_for_its_slot_have_left() -> None:
    clocked = ClockedScheduler(width=4, common=4, slots=1, turn_s=5.0)
    clocked.offer("a")
    waiting = clocked.offer("b")
    clocked.now += 6.0
    clocked.admit()
    assert clocked.scheduler.slots.held["a"].draining
    clocked.scheduler.withdraw(waiting, clocked.now)
    assert clocked.scheduler.queued == 0
    assert clocked.scheduler.try_enter(request("a"), clocked.now) is None
    assert clocked.offer("a").stage is Stage.WAITING


def test_a_slot_that_is_claimed_or_waited_for_is_left_to_the_queue() -> None:
    """Both outlive those who wait until somebody looks at the queue again."""
    slots = ClockedScheduler(slots=2).scheduler.slots
    assert slots.spare
    slots.queue("b", "p", 0.0)
    assert not slots.spare
    slots.turn(10.0)
    slots.unqueue("b")
    assert slots.free == 2
    assert not slots.spare, "b's claim"
    slots.turn(10.0)
    assert slots.spare


async def test_a_closed_queue_admits_nobody() -> None:
    queue = AdmissionQueue(policy())
    queue.close("it was killed")
    assert queue.try_enter(request()) is None
    queue.open()
    permit = queue.try_enter(request())
    assert permit is not None
    permit.leave(10)
    permit.leave(10)
    assert (queue.snapshot().in_flight, queue.snapshot().left) == (0, 1)


async def test_a_place_taken_without_the_queue_wakes_who_waits_when_it_is_left() -> None:
    queue = AdmissionQueue(policy(width=1, common=1))
    permit = queue.try_enter(request())
    assert permit is not None
    waiting = asyncio.create_task(queue.enter(request(), asyncio.get_running_loop().time() + 30))
    await asyncio.sleep(0)
    permit.leave(10)
    (await waiting).leave(10)
    assert queue.snapshot().left == 2
