"""Decisions one by one."""

from __future__ import annotations

import pytest

from service.admission.fair import LINGER_S, MAX_IDLE
from service.admission.queued import QueuedRequest, Stage
from service.errors import RateLimited, Unavailable
from tests.unit.service.admission.world import ClockedScheduler, Memory, request

pytestmark = pytest.mark.usefixtures("scheduler_class")


def stages(*entries: QueuedRequest) -> list[Stage]:
    return [entry.stage for entry in entries]


def adapters(entries: list[QueuedRequest]) -> list[str | None]:
    return [entry.request.adapter for entry in entries]


def test_an_empty_gate_lets_in_at_once_and_no_more_than_the_common_places() -> None:
    clocked = ClockedScheduler()
    assert stages(clocked.offer(), clocked.offer(), clocked.offer()) == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    assert (clocked.scheduler.in_flight, clocked.scheduler.queued) == (2, 1)


def test_who_leaves_makes_room_for_the_next() -> None:
    clocked = ClockedScheduler()
    first, _, third = clocked.offer(), clocked.offer(), clocked.offer()
    assert clocked.leave(first) == [third]
    assert clocked.leave(first) == [], "leaving twice gives the place back once"
    assert clocked.scheduler.in_flight == 2


def test_one_flow_does_not_stand_before_another() -> None:
    clocked = ClockedScheduler(width=2, slots=None)
    running = [clocked.offer("flood"), clocked.offer("flood")]
    flood = [clocked.offer("flood") for _ in range(5)]
    other = clocked.offer("other")
    assert clocked.leave(running[0]) == [other]
    assert clocked.leave(running[1]) == [flood[0]]


@pytest.mark.parametrize("level", ["project", "key", "adapter"])
def test_fair_at_each_level_whatever_lies_below(level: str) -> None:
    """One side has three flows below, the other has one: the level's two sides still get the same."""
    clocked = ClockedScheduler(width=1, common=1, slots=None)
    running = clocked.offer("x", project="x", key="x")
    fields = {"project": ("p", "q"), "key": ("k", "l"), "adapter": ("a", "b")}[level]
    for _ in range(6):
        for side in range(2):
            for spread in range(3 if side == 0 else 1):
                named = {"project": "p", "key": "k", "adapter": "a", level: fields[side]}
                if side == 0 and level != "adapter":
                    named["adapter"] = f"a{spread}"
                clocked.offer(**named)
    seen: list[str] = []
    while len(seen) < 6:
        (running,) = clocked.leave(running)
        seen.append(str(getattr(running.request, "key_id" if level == "key" else level)))
    assert sorted(seen) == sorted([*[fields[0]] * 3, *[fields[1]] * 3])


def test_tokens_count_not_requests() -> None:
    clocked = ClockedScheduler(width=1, common=1, slots=None)
    running = clocked.offer("x")
    for _ in range(10):
        clocked.offer("long", tokens=400)
        clocked.offer("short", tokens=100)
    seen = []
    for _ in range(10):
        (running,) = clocked.leave(running, running.request.tokens)
        seen.append(running.request.adapter)
    assert (seen.count("long"), seen.count("short")) == (2, 8)


def test_what_was_used_in_truth_corrects_the_estimate() -> None:
    """Who announces 2,000 tokens and uses 100 is not held to the announcement."""
    clocked = ClockedScheduler(width=1, common=1, slots=None)
    running = clocked.offer("x")
    for _ in range(30):
        clocked.offer("careless", tokens=2000)
        clocked.offer("exact", tokens=100)
    seen = []
    for _ in range(20):
        (running,) = clocked.leave(running, 100)
        seen.append(running.request.adapter)
    assert abs(seen.count("careless") - seen.count("exact")) <= 2


def test_a_flow_that_announces_too_much_keeps_as_many_in_the_engine_as_one_that_does_not() -> None:
    """Correcting at the end is not enough: what is in the engine now is charged by what the flow has used so far."""
    clocked = ClockedScheduler(width=8, common=8, slots=None, queue_size=1000)
    inside = [clocked.offer("careless", tokens=2000) for _ in range(8)]
    for _ in range(200):
        clocked.offer("careless", tokens=2000)
        clocked.offer("exact", tokens=100)
    seen = []
    for _ in range(160):
        admitted = clocked.leave(inside.pop(0), 100)
        inside += admitted
        seen += adapters(admitted)
    assert abs(seen.count("careless") - seen.count("exact")) <= 16


def test_an_idle_flow_saves_up_nothing_and_a_new_one_owes_nothing() -> None:
    clocked = ClockedScheduler(width=1, common=1, slots=None)
    running = clocked.offer("early")
    for _ in range(20):
        clocked.offer("busy")
    for _ in range(10):
        (running,) = clocked.leave(running)
    for _ in range(5):
        clocked.offer("early")
        clocked.offer("new")
    seen = []
    for _ in range(9):
        (running,) = clocked.leave(running)
        seen.append(running.request.adapter)
    assert {name: seen.count(name) for name in ("early", "new", "busy")} == {"early": 3, "new": 3, "busy": 3}


def test_a_request_that_reached_no_engine_costs_its_flow_nothing() -> None:
    clocked = ClockedScheduler(width=1, common=1, slots=None)
    running = clocked.offer("a")
    leaf = running.leaf
    before = leaf.tag - running.charge
    clocked.leave(running, None)
    assert leaf.tag == before
    assert leaf.ratio == 1.0


def test_small_flows_use_the_reserve_a_flood_does_not() -> None:
    clocked = ClockedScheduler(width=12, common=6, slots=None)
    flood = [clocked.offer("flood") for _ in range(14)]
    assert [entry.stage for entry in flood].count(Stage.ADMITTED) == 6
    small = [clocked.offer("small") for _ in range(3)]
    assert clocked.admit() == small
    assert clocked.scheduler.in_flight == 9
    more = clocked.offer("small")
    assert clocked.admit() == [], "it asks for more than half of the common places: it is not small any more"
    assert more.stage is Stage.WAITING


def test_fifty_keys_with_a_request_each_are_a_flood_of_their_project() -> None:
    """They may fill the width while nobody else is there; then the next place is the other project's."""
    clocked = ClockedScheduler(width=12, common=6, slots=None)
    many = [clocked.offer(project="many", key=f"k{number}") for number in range(50)]
    clocked.admit()
    inside = [entry for entry in many if entry.stage is Stage.ADMITTED]
    assert len(inside) <= 12
    single = clocked.offer(project="single")
    clocked.admit()
    assert single.stage is Stage.ADMITTED or clocked.leave(inside[0]) == [single]
    assert clocked.leave(inside[1]) == [], "beside another project they are no small flows any more"


def test_the_reserve_is_no_way_round_the_tokens() -> None:
    clocked = ClockedScheduler(width=8, common=2, slots=None, burst=1000)
    clocked.offer("flood"), clocked.offer("flood")
    for _ in range(20):
        clocked.offer("flood")
    taken = 0
    for _ in range(20):
        entry = clocked.offer("greedy", tokens=400)
        admitted = clocked.admit()
        taken += entry in admitted
        for one in admitted:
            clocked.scheduler.leave(one, 400, clocked.now)
        if not admitted:
            break
    assert 1 <= taken <= 4, "one at a time, yet only so far ahead of the flood in tokens"


def test_the_width_is_never_exceeded_by_small_flows_either() -> None:
    clocked = ClockedScheduler(width=3, common=1, slots=None)
    for number in range(10):
        clocked.offer(f"a{number}")
        clocked.admit()
    assert clocked.scheduler.in_flight == 3


def test_prompts_wait_while_others_are_read() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=None, prefill=100)
    first = clocked.offer(prompt=60)
    second, third = clocked.offer(prompt=60), clocked.offer(prompt=30)
    assert stages(first, second, third) == [Stage.ADMITTED, Stage.WAITING, Stage.WAITING]
    assert clocked.admit() == [], "nobody goes past a long prompt"
    clocked.start(first)
    assert clocked.admit() == [second, third]
    clocked.start(second, third)
    huge = clocked.offer(prompt=5000)
    assert huge.stage is Stage.ADMITTED, "alone, any prompt goes"


def test_nobody_goes_past_a_small_flow_with_a_long_prompt() -> None:
    clocked = ClockedScheduler(width=12, common=12, slots=None, prefill=100)
    reading = clocked.offer("x", prompt=90)
    long, short = clocked.offer("long", prompt=150), clocked.offer("short", prompt=5)
    assert clocked.admit() == []
    clocked.start(reading)
    assert clocked.admit() == [long, short]


def test_only_small_flows_go_past_a_long_prompt_of_a_flood() -> None:
    clocked = ClockedScheduler(width=12, common=12, slots=None, prefill=100)
    reading = clocked.offer("x", prompt=90)
    long = [clocked.offer("long", prompt=150) for _ in range(7)]
    flood = [clocked.offer("flood", prompt=5) for _ in range(7)]
    assert clocked.admit() == [], "the turn is another's, and it asks for more than half of the places"
    small = clocked.offer("small", prompt=5)
    assert clocked.admit() == [small]
    clocked.start(reading, small)
    assert clocked.admit()[0] is long[0]
    assert flood[0].stage is Stage.WAITING


def test_an_answer_in_one_piece_is_not_taken_for_a_prompt_being_read() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=None, prefill=100)
    clocked.offer(prompt=60)
    second = clocked.offer(prompt=60)
    wake = clocked.scheduler.wake_at()
    assert wake is not None
    clocked.now = wake + 0.001
    assert clocked.admit() == [second]


def test_an_engine_that_grows_slow_is_given_more_time_to_show_a_token() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=None)
    before = clocked.scheduler.first_token_s
    for _ in range(50):
        entry = clocked.offer()
        clocked.now += 2.5
        clocked.admit()
        clocked.start(entry)
        clocked.leave(entry)
    assert 2 < clocked.scheduler.first_token_s < 2.6
    assert before < 2


def test_a_small_flow_goes_past_prompts_of_a_flood() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=None, prefill=100)
    for _ in range(8):
        clocked.offer("flood", prompt=60)
    small = clocked.offer("small", prompt=60)
    assert clocked.admit() == [small]


def test_the_queue_is_bounded_for_all_and_for_each() -> None:
    clocked = ClockedScheduler(width=1, common=1, queue_size=4, queue_share=0.5)
    clocked.offer()
    clocked.offer(), clocked.offer()
    with pytest.raises(RateLimited) as own:
        clocked.offer(adapter="another of the same key")
    assert (own.value.status, own.value.code) == (429, "queue_share_full")
    assert int(own.value.headers["retry-after"]) >= 1
    with pytest.raises(RateLimited, match="this project already has"):
        clocked.offer(key="another of the same project")
    clocked.offer(project="q"), clocked.offer(project="q")
    clocked.offer(project="r")
    with pytest.raises(Unavailable) as full:
        clocked.offer(project="r")
    assert (full.value.status, full.value.code) == (503, "overloaded")
    assert int(full.value.headers["retry-after"]) >= 1
    counts = clocked.scheduler.counts
    assert (counts.overloaded, counts.share_full) == (2, 2)
    assert clocked.scheduler.queued == 4


def test_retry_after_follows_the_pace() -> None:
    clocked = ClockedScheduler(width=1, common=1)
    running = clocked.offer()
    for _ in range(40):
        clocked.offer()
    for _ in range(10):
        clocked.now += 0.5
        (running,) = clocked.leave(running)
    assert clocked.scheduler.retry_after(20) == 10
    assert clocked.scheduler.retry_after(10_000) == 60
    assert clocked.scheduler.retry_after(0) == 1


def test_a_long_prompt_counts_as_what_one_step_reads_of_it() -> None:
    clocked = ClockedScheduler(width=8, common=8, slots=None, prefill=192, chunk=128)
    long = clocked.offer(prompt=5_000)
    assert clocked.offer(prompt=64).stage is Stage.ADMITTED
    assert clocked.offer(prompt=64).stage is Stage.WAITING
    assert clocked.scheduler.prefill == 192
    clocked.start(long)
    assert clocked.scheduler.prefill == 64
    assert len(clocked.admit()) == 1


def test_a_request_whose_turn_would_come_too_late_is_refused_at_once() -> None:
    clocked = ClockedScheduler(width=1, common=1)
    running = clocked.offer()
    for _ in range(30):
        clocked.scheduler.offer(request(), clocked.now, 5.0)  # nothing has left yet: no pace, no forecast
    for _ in range(10):
        clocked.now += 0.5
        (running,) = clocked.leave(running)
    scheduler = clocked.scheduler
    with pytest.raises(Unavailable, match=r"might wait 13\.2 s") as refused:
        scheduler.offer(request(), clocked.now, 5.0)
    assert (refused.value.status, refused.value.code) == (503, "queue_timeout")
    assert refused.value.headers["retry-after"] == "10"
    assert (scheduler.queued, scheduler.counts.timeouts) == (20, 1)
    # what shares the engine with the flood does not wait behind it; what yields to callers has no forecast
    others = request(project="q"), request(key="another"), request("b"), request(background=True)
    assert [scheduler.offer(other, clocked.now, 5.0).stage for other in others] == [Stage.WAITING] * 4
    assert scheduler.offer(request(), clocked.now, 16.0).stage is Stage.WAITING


def test_one_cold_load_at_a_time_and_warm_ones_go_past_it() -> None:
    memory = Memory("cold1", "cold2")
    clocked = ClockedScheduler(memory, width=8, common=8, slots=8)
    first, second, warm = clocked.offer("cold1"), clocked.offer("cold2"), clocked.offer("warm")
    assert stages(first, second) == [Stage.ADMITTED, Stage.WAITING]
    assert clocked.admit() == [warm]
    clocked.now += 0.3
    memory.cold.discard("cold1")
    clocked.start(first)
    assert clocked.admit() == [second]
    assert clocked.scheduler.counts.cold == 2


def test_first_come_first_served_waits_for_no_load() -> None:
    clocked = ClockedScheduler(Memory("cold1", "cold2"), width=8, common=8, slots=None, queue_size=0)
    entries = [clocked.offer(name) for name in ("cold1", "cold1", "cold2")]
    assert stages(*entries) == [Stage.ADMITTED] * 3
    assert clocked.scheduler.counts.cold == 2, "the second request for an adapter loads nothing"


def test_a_cold_load_that_nobody_sees_end_does_not_block_for_ever() -> None:
    clocked = ClockedScheduler(Memory("cold1", "cold2"), width=8, common=8, slots=8)
    clocked.offer("cold1")
    second = clocked.offer("cold2")
    began = clocked.now
    while not (arrived := clocked.admit()):  # nothing else happens: the answer in one piece goes on
        wake = clocked.scheduler.wake_at()
        assert wake is not None
        assert wake > clocked.now, "asked again at once, for ever"
        clocked.now = wake + 0.001
    assert arrived == [second]
    assert clocked.now - began < 6


def test_a_load_that_counts_as_over_wakes_nobody_who_waits_for_a_place() -> None:
    clocked = ClockedScheduler(Memory("cold1"), width=1, common=1, slots=8)
    clocked.offer("cold1")
    clocked.offer("warm")
    clocked.now += 60
    assert clocked.admit() == []
    assert clocked.scheduler.wake_at() is None


def test_withdrawing_frees_the_queue_and_only_once() -> None:
    clocked = ClockedScheduler(width=1, common=1)
    running, waiting = clocked.offer(), clocked.offer()
    clocked.scheduler.withdraw(waiting, clocked.now)
    clocked.scheduler.withdraw(waiting, clocked.now)
    clocked.scheduler.withdraw(running, clocked.now)
    assert (clocked.scheduler.queued, clocked.scheduler.in_flight, clocked.scheduler.counts.withdrawn) == (0, 1, 1)


def test_idle_flows_are_forgotten() -> None:
    clocked = ClockedScheduler(slots=None)
    for number in range(MAX_IDLE + 100):
        clocked.leave(clocked.offer(f"a{number}", key=f"k{number}"))
    assert len(clocked.scheduler.callers.leaves()) == MAX_IDLE
    clocked.now += LINGER_S + 1
    last = clocked.offer("last")
    clocked.leave(last)
    clocked.now += LINGER_S + 1
    clocked.scheduler.callers.rest(last.leaf, clocked.now)
    assert [leaf.name for leaf in clocked.scheduler.callers.leaves()] == ["last"]
