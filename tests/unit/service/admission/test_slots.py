"""The engine's LoRA slots: who holds one, who waits, and for how long at most."""

from __future__ import annotations

import pytest

from service.admission.queued import QueuedRequest, Stage
from service.admission.slots import Slots
from tests.unit.service.admission.world import ClockedScheduler

pytestmark = pytest.mark.usefixtures("scheduler_class")


def names(entries: list[QueuedRequest]) -> list[str | None]:
    return [entry.request.adapter for entry in entries]


def test_no_more_adapters_than_slots_and_the_base_needs_none() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=2)
    entries = [clocked.offer(name) for name in ("a", "b", "c", None, "a")]
    assert [entry.stage for entry in entries[:3]] == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    assert clocked.admit() == entries[3:], "who needs no slot, or has one, goes past who needs one more"
    assert set(clocked.scheduler.slots.held) == {"a", "b"}


def test_a_slot_that_runs_empty_goes_to_the_one_who_waits() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=2)
    a, _, c = (clocked.offer(name) for name in ("a", "b", "c"))
    assert clocked.leave(a) == [c]


def test_an_adapter_in_a_slot_goes_before_one_more_load_until_it_has_had_its_turn() -> None:
    clocked = ClockedScheduler(width=1, common=1, slots=1, turn_s=10)
    running, other = clocked.offer("a"), clocked.offer("b")
    for _ in range(9):
        follower = clocked.offer("a", tokens=1000)
        clocked.now += 1
        assert clocked.leave(running, 1000) == [follower], "b is owed more tokens, but a has the slot"
        running = follower
    clocked.offer("a")
    clocked.now += 1
    assert clocked.leave(running) == [other]


def test_after_its_turn_an_adapter_is_not_fed_until_its_slot_has_changed_hands() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=1, turn_s=10)
    first, second = clocked.offer("a"), clocked.offer("a")
    other = clocked.offer("b")
    clocked.now += 10
    late = clocked.offer("a")
    assert clocked.admit() == []
    assert late.stage is Stage.WAITING
    assert clocked.leave(first) == []
    assert clocked.leave(second) == [other]
    assert clocked.leave(other) == [late]


def test_who_ran_empty_for_another_is_fed_again_when_that_one_goes_away() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=1, turn_s=10)
    clocked.offer("a")
    other = clocked.offer("b")
    clocked.now += 10
    late = clocked.offer("a")
    assert clocked.admit() == []
    clocked.scheduler.withdraw(other, clocked.now)
    assert clocked.admit() == [late]


def test_only_some_slots_run_empty_at_once() -> None:
    clocked = ClockedScheduler(width=64, common=64, slots=4, turn_s=10)
    for name in "abcd":
        clocked.offer(name)
    for name in "efgh":
        clocked.offer(name)
    clocked.now += 10
    clocked.admit()
    assert sum(tenure.draining for tenure in clocked.scheduler.slots.held.values()) == 1


def test_the_slots_are_shared_between_projects() -> None:
    """A project with one adapter keeps its slot; the turn passes among the adapters of the project with many."""
    clocked = ClockedScheduler(width=64, common=64, slots=4, turn_s=10)
    alone = clocked.offer("only", project="small")
    running = [clocked.offer(name, project="large") for name in "abc"]
    waiting = [clocked.offer(name, project="large") for name in "defghi"]
    clocked.now += 30
    again = clocked.offer("only", project="small")
    assert clocked.admit() == [again]
    admitted: list[QueuedRequest] = []
    for entry in running:
        admitted += clocked.leave(entry)
    assert {entry.request.adapter for entry in admitted} <= {entry.request.adapter for entry in waiting}
    assert not clocked.scheduler.slots.held["only"].draining
    assert alone.stage is Stage.ADMITTED


def test_the_project_with_the_fewest_slots_claims_first() -> None:
    clocked = ClockedScheduler(width=64, common=64, slots=2, turn_s=10)
    holders = [clocked.offer(name, project="large") for name in "ab"]
    for name in "cde":
        clocked.offer(name, project="large")
    clocked.now += 1
    single = clocked.offer("only", project="small")
    clocked.now += 15
    assert clocked.admit() == []
    assert clocked.leave(holders[0]) == [single], "those of the other project have waited longer"


def test_a_claim_is_stronger_than_a_turn() -> None:
    """The adapter that had the slot is owed more tokens than the one that waited; else it would keep it."""
    clocked = ClockedScheduler(width=1, common=1, slots=1, turn_s=10)
    clocked.leave(clocked.offer("served", tokens=50_000), 50_000)
    running = clocked.offer("modest", tokens=1)
    modest = [clocked.offer("modest", tokens=1) for _ in range(3)]
    waiting = clocked.offer("served")
    clocked.now += 9
    assert clocked.leave(running, 1) == [modest[0]]
    clocked.now += 1
    assert clocked.leave(modest[0], 1) == [waiting]
    assert clocked.leave(waiting) == [modest[1]]


def test_background_leaves_a_slot_free() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=2, background_width=4)
    first, second = clocked.offer("a", background=True), clocked.offer("b", background=True)
    assert [first.stage, second.stage] == [Stage.ADMITTED, Stage.WAITING]
    assert clocked.offer("c").stage is Stage.ADMITTED


def test_nobody_waits_for_ever_for_a_slot() -> None:
    """Sixteen adapters that never stop on four slots: each gets in within (16 / 4) turns and their ends."""
    clocked = ClockedScheduler(width=16, common=16, slots=4, turn_s=10)
    inside: list[tuple[float, QueuedRequest]] = []
    last_in = {f"a{number}": clocked.now for number in range(16)}
    longest = 0.0

    def note(entries: list[QueuedRequest]) -> None:
        nonlocal longest
        for entry in entries:
            name = str(entry.request.adapter)
            longest = max(longest, clocked.now - last_in[name])
            last_in[name] = clocked.now
            inside.append((clocked.now + 3, entry))

    for name in last_in:
        note([entry for entry in [clocked.offer(name) for _ in range(4)] if entry.stage is Stage.ADMITTED])
    note(clocked.admit())
    while clocked.now < 1600:
        inside.sort(key=lambda one: one[0])
        clocked.now, entry = inside.pop(0)
        replacement = clocked.offer(str(entry.request.adapter))
        if replacement.stage is Stage.ADMITTED:
            note([replacement])
        note(clocked.leave(entry))
        assert len(clocked.scheduler.slots.held) <= 4
    longest = max(longest, *(clocked.now - at for at in last_in.values()))
    assert longest <= 4 * (10 + 3) + 3


def test_unbounded_slots_keep_nothing() -> None:
    slots = Slots(None, 10, 1)
    slots.queue("a", "p", 0)
    assert slots.admits("a")
    slots.enter("a", "p", 0)
    slots.turn(100)
    slots.leave("a", 100)
    assert (slots.held, slots.waiting, slots.free) == ({}, 0, None)
