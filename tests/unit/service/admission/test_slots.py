"""The engine's LoRA slots: who holds one, who waits, and for how long at most."""

from __future__ import annotations

import pytest

from service.admission.queued import QueuedRequest, Stage
from service.admission.slots import Slots
from tests.unit.service.admission.world import Desk

pytestmark = pytest.mark.usefixtures("scheduler_class")


def names(entries: list[QueuedRequest]) -> list[str | None]:
    return [entry.request.adapter for entry in entries]


def test_no_more_adapters_than_slots_and_the_base_needs_none() -> None:
    desk = Desk(width=8, common=8, slots=2)
    entries = [desk.offer(name) for name in ("a", "b", "c", None, "a")]
    assert [entry.stage for entry in entries[:3]] == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    assert desk.admit() == entries[3:], "who needs no slot, or has one, goes past who needs one more"
    assert set(desk.scheduler.slots.held) == {"a", "b"}


def test_a_slot_that_runs_empty_goes_to_the_one_who_waits() -> None:
    desk = Desk(width=8, common=8, slots=2)
    a, _, c = (desk.offer(name) for name in ("a", "b", "c"))
    assert desk.leave(a) == [c]


def test_an_adapter_in_a_slot_goes_before_one_more_load_until_it_has_had_its_turn() -> None:
    desk = Desk(width=1, common=1, slots=1, turn_s=10)
    running, other = desk.offer("a"), desk.offer("b")
    for _ in range(9):
        follower = desk.offer("a", tokens=1000)
        desk.now += 1
        assert desk.leave(running, 1000) == [follower], "b is owed more tokens, but a has the slot"
        running = follower
    desk.offer("a")
    desk.now += 1
    assert desk.leave(running) == [other]


def test_after_its_turn_an_adapter_is_not_fed_until_its_slot_has_changed_hands() -> None:
    desk = Desk(width=8, common=8, slots=1, turn_s=10)
    first, second = desk.offer("a"), desk.offer("a")
    other = desk.offer("b")
    desk.now += 10
    late = desk.offer("a")
    assert desk.admit() == []
    assert late.stage is Stage.WAITING
    assert desk.leave(first) == []
    assert desk.leave(second) == [other]
    assert desk.leave(other) == [late]


def test_who_ran_empty_for_another_is_fed_again_when_that_one_goes_away() -> None:
    desk = Desk(width=8, common=8, slots=1, turn_s=10)
    desk.offer("a")
    other = desk.offer("b")
    desk.now += 10
    late = desk.offer("a")
    assert desk.admit() == []
    desk.scheduler.withdraw(other, desk.now)
    assert desk.admit() == [late]


def test_only_some_slots_run_empty_at_once() -> None:
    desk = Desk(width=64, common=64, slots=4, turn_s=10)
    for name in "abcd":
        desk.offer(name)
    for name in "efgh":
        desk.offer(name)
    desk.now += 10
    desk.admit()
    assert sum(tenure.draining for tenure in desk.scheduler.slots.held.values()) == 1


def test_the_slots_are_shared_between_projects() -> None:
    """A project with one adapter keeps its slot; the turn passes among the adapters of the project with many."""
    desk = Desk(width=64, common=64, slots=4, turn_s=10)
    alone = desk.offer("only", project="small")
    running = [desk.offer(name, project="large") for name in "abc"]
    waiting = [desk.offer(name, project="large") for name in "defghi"]
    desk.now += 30
    again = desk.offer("only", project="small")
    assert desk.admit() == [again]
    admitted: list[QueuedRequest] = []
    for entry in running:
        admitted += desk.leave(entry)
    assert {entry.request.adapter for entry in admitted} <= {entry.request.adapter for entry in waiting}
    assert not desk.scheduler.slots.held["only"].draining
    assert alone.stage is Stage.ADMITTED


def test_the_project_with_the_fewest_slots_claims_first() -> None:
    desk = Desk(width=64, common=64, slots=2, turn_s=10)
    holders = [desk.offer(name, project="large") for name in "ab"]
    for name in "cde":
        desk.offer(name, project="large")
    desk.now += 1
    single = desk.offer("only", project="small")
    desk.now += 15
    assert desk.admit() == []
    assert desk.leave(holders[0]) == [single], "those of the other project have waited longer"


def test_a_claim_is_stronger_than_a_turn() -> None:
    """The adapter that had the slot is owed more tokens than the one that waited; else it would keep it."""
    desk = Desk(width=1, common=1, slots=1, turn_s=10)
    desk.leave(desk.offer("served", tokens=50_000), 50_000)
    running = desk.offer("modest", tokens=1)
    modest = [desk.offer("modest", tokens=1) for _ in range(3)]
    waiting = desk.offer("served")
    desk.now += 9
    assert desk.leave(running, 1) == [modest[0]]
    desk.now += 1
    assert desk.leave(modest[0], 1) == [waiting]
    assert desk.leave(waiting) == [modest[1]]


def test_background_leaves_a_slot_free() -> None:
    desk = Desk(width=8, common=8, slots=2, background_width=4)
    first, second = desk.offer("a", background=True), desk.offer("b", background=True)
    assert [first.stage, second.stage] == [Stage.ADMITTED, Stage.WAITING]
    assert desk.offer("c").stage is Stage.ADMITTED


def test_nobody_waits_for_ever_for_a_slot() -> None:
    """Sixteen adapters that never stop on four slots: each gets in within (16 / 4) turns and their ends."""
    desk = Desk(width=16, common=16, slots=4, turn_s=10)
    inside: list[tuple[float, QueuedRequest]] = []
    last_in = {f"a{number}": desk.now for number in range(16)}
    longest = 0.0

    def note(entries: list[QueuedRequest]) -> None:
        nonlocal longest
        for entry in entries:
            name = str(entry.request.adapter)
            longest = max(longest, desk.now - last_in[name])
            last_in[name] = desk.now
            inside.append((desk.now + 3, entry))

    for name in last_in:
        note([entry for entry in [desk.offer(name) for _ in range(4)] if entry.stage is Stage.ADMITTED])
    note(desk.admit())
    while desk.now < 1600:
        inside.sort(key=lambda one: one[0])
        desk.now, entry = inside.pop(0)
        replacement = desk.offer(str(entry.request.adapter))
        if replacement.stage is Stage.ADMITTED:
            note([replacement])
        note(desk.leave(entry))
        assert len(desk.scheduler.slots.held) <= 4
    longest = max(longest, *(desk.now - at for at in last_in.values()))
    assert longest <= 4 * (10 + 3) + 3


def test_unbounded_slots_keep_nothing() -> None:
    slots = Slots(None, 10, 1)
    slots.queue("a", "p", 0)
    assert slots.admits("a")
    slots.enter("a", "p", 0)
    slots.turn(100)
    slots.leave("a", 100)
    assert (slots.held, slots.waiting, slots.free) == ({}, 0, None)
