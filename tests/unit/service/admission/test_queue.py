"""The gate on a real event loop: waiting, deadlines, cancellation, the engine that goes away."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from dataclasses import dataclass

import pytest

from service.admission.queue import AdmissionQueue, QueuePermit
from service.admission.request import AdmissionRequest
from service.errors import EngineUnavailable, RateLimited, Unavailable
from tests.unit.service.admission.world import policy, request


@dataclass
class State:
    name: str
    reason: str = "it was killed"


class EagerQueue(AdmissionQueue):
    """A queue as the data path uses it: whoever finds nobody waiting does not enter it."""

    async def enter(self, request: AdmissionRequest, deadline: float) -> QueuePermit:
        return self.try_enter(request) or await super().enter(request, deadline)


@pytest.fixture(autouse=True, params=[AdmissionQueue, EagerQueue], ids=["enter", "try_enter"])
def queue_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue that `gate` makes."""
    monkeypatch.setattr(sys.modules[__name__], "made_of", request.param)


made_of: type[AdmissionQueue] = AdmissionQueue


def gate(**changes: object) -> AdmissionQueue:
    return made_of(policy(**{"width": 1, "common": 1, **changes}))


def later(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def enter(made: AdmissionQueue, *, within_s: float = 30.0, **fields: object) -> asyncio.Task[QueuePermit]:
    return asyncio.create_task(made.enter(request(**fields), later(within_s)))  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_goes_in_and_the_next_when_it_has_left() -> None:
    made = gate()
    first = await made.enter(request(), later())
    second = enter(made)
    await settle()
    assert not second.done()
    first.leave(10)
    first.leave(10)
    (await second).leave(10)
    assert (made.snapshot().in_flight, made.snapshot().queued, made.snapshot().left) == (0, 0, 2)


async def test_a_deadline_that_the_turn_would_miss_is_not_waited_for() -> None:
    made = gate()
    permits = [await made.enter(request(), later())]
    waiting = [enter(made) for _ in range(8)]
    for task in waiting[:4]:
        await asyncio.sleep(0.05)
        permits.pop().leave(10)
        permits.append(await task)
    with pytest.raises(Unavailable, match="might wait") as caught:
        await made.enter(request(), later(0.05))
    assert (caught.value.status, caught.value.code) == (503, "queue_timeout")
    assert (made.snapshot().queued, made.snapshot().timeouts) == (4, 1)
    for task in waiting[4:]:
        permits.pop().leave(10)
        permits.append(await task)
    permits.pop().leave(10)


async def test_the_deadline_passes_in_the_queue() -> None:
    made = gate()
    await made.enter(request(), later())
    with pytest.raises(Unavailable) as caught:
        await made.enter(request(), later(0.02))
    assert (caught.value.status, caught.value.code) == (503, "queue_timeout")
    assert int(caught.value.headers["retry-after"]) >= 1
    now = made.snapshot()
    assert (now.queued, now.timeouts, now.in_flight) == (0, 1, 1)


async def test_a_client_that_leaves_gives_up_its_place_in_the_queue() -> None:
    made = gate()
    first = await made.enter(request(), later())
    leaver, stayer = enter(made), enter(made)
    await settle()
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert leaver.cancelled()
    assert made.snapshot().queued == 1
    first.leave(1)
    (await stayer).leave(1)
    assert made.snapshot().in_flight == 0


async def test_a_place_granted_to_a_client_that_leaves_at_that_moment_is_given_on() -> None:
    made = gate()
    first = await made.enter(request(), later())
    leaver, stayer = enter(made), enter(made)
    await settle()
    first.leave(1)  # the leaver's place is granted here, and it is cancelled before it has run
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert leaver.cancelled()
    (await stayer).leave(1)
    assert (made.snapshot().in_flight, made.snapshot().queued) == (0, 0)


async def test_cancelled_first_and_granted_before_it_has_run() -> None:
    made = gate()
    first = await made.enter(request(), later())
    leaver, stayer = enter(made), enter(made)
    await settle()
    leaver.cancel()
    first.leave(1)
    await asyncio.gather(leaver, return_exceptions=True)
    (await stayer).leave(1)
    assert (made.snapshot().in_flight, made.snapshot().queued) == (0, 0)


async def test_an_engine_that_goes_away_refuses_all_who_wait_and_all_who_come() -> None:
    made = gate()
    first = await made.enter(request(), later())
    waiting = [enter(made) for _ in range(3)]
    await settle()
    made.engine_changed(State("down"))
    for task in waiting:
        with pytest.raises(EngineUnavailable, match="it was killed"):
            await task
    with pytest.raises(EngineUnavailable):
        await made.enter(request(), later())
    first.leave(None)
    made.engine_changed(State("ready"))
    (await made.enter(request(), later())).leave(1)
    assert (made.snapshot().in_flight, made.snapshot().queued) == (0, 0)


async def test_refused_and_cancelled_in_the_same_moment() -> None:
    """Nor does asyncio complain of an error that nobody has looked at."""
    made = gate()
    await made.enter(request(), later())
    complaints: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        waiting = enter(made)
        await settle()
        made.close("gone")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        del waiting
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert complaints == []
    assert made.snapshot().queued == 0


async def test_an_over_long_queue_refuses_at_once() -> None:
    made = gate(queue_size=4, queue_share=0.5)
    await made.enter(request(), later())
    waiting = [enter(made, project=project) for project in ("p", "p", "q", "q")]
    await settle()
    waiting.append(enter(made, project="r"))
    await settle()
    with pytest.raises(Unavailable) as displaced:
        await waiting.pop(1)
    with pytest.raises(Unavailable) as full:
        await made.enter(request(project="r"), later())
    made.scheduler.withdraw(made.scheduler.callers.leaves()[0].head, time.monotonic())
    with pytest.raises(RateLimited):
        await made.enter(request(project="q"), later())
    assert {displaced.value.code, full.value.code} == {"overloaded"}
    assert int(displaced.value.headers["retry-after"]) >= 1
    assert not any(task.done() for task in waiting[1:])
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_whoever_shows_no_first_token_does_not_hold_the_next_for_ever() -> None:
    """Nothing happens here but time: the gate wakes by itself."""
    made = gate(width=8, common=8, prefill=100)
    made.scheduler.first_token_s = 0.01
    await made.enter(request(prompt=90), later())
    second = enter(made, prompt=90)
    async with asyncio.timeout(60):
        (await second).leave(1)


async def test_a_first_token_lets_the_next_prompt_in() -> None:
    made = gate(width=8, common=8, prefill=100)
    first = await made.enter(request(prompt=90), later())
    second = enter(made, prompt=90)
    await settle()
    assert not second.done()
    first.first_token()
    await second
    assert made.snapshot().prefill_tokens == 90


async def test_a_cold_load_is_timed_once_by_whoever_sees_it_end() -> None:
    class Memory:
        def __init__(self) -> None:
            self.seen: list[tuple[str, float]] = []

        def is_cold(self, adapter: str) -> bool:
            return True

        def loaded(self, adapter: str, seconds: float) -> None:
            self.seen.append((adapter, seconds))

    memory = Memory()
    made = made_of(policy(), memory)
    place = await made.enter(request("cold"), later())
    place.first_token()
    place.first_token()
    place.leave(3)
    silent = await made.enter(request("silent"), later())
    silent.leave(3)
    failed = await made.enter(request("failed"), later())
    failed.leave(None)
    refused = await made.enter(request("refused"), later())
    refused.leave(3, answered=False)
    assert [adapter for adapter, _ in memory.seen] == ["cold", "silent"]
    assert all(seconds >= 0 for _, seconds in memory.seen)
    assert made.snapshot().cold_loads == 4


async def test_the_snapshot_says_who_waits_and_who_is_in() -> None:
    made = gate()
    place = await made.enter(request("a", project="p"), later())
    waiting = [enter(made, adapter="b", project="q"), enter(made, adapter=None, project="q")]
    await settle()
    now = made.snapshot()
    assert now.queued_by_project == {"q": 2}
    assert now.queued_by_adapter == {"b": 1, None: 1}
    assert now.in_flight_by_adapter == {"a": 1}
    assert (now.slots_in_use, now.adapters_waiting, now.width, now.common) == (1, 1, 1, 1)
    place.leave(1)
    for task in waiting:
        (await task).leave(1)
    assert made.snapshot().admitted == 3


async def test_a_storm_of_clients_that_leave_loses_no_place() -> None:
    made = gate(width=3, common=2, queue_size=1000)

    async def client(number: int) -> None:
        place = await made.enter(request(f"a{number % 5}", key=f"k{number % 3}"), later())
        try:
            await asyncio.sleep(0.0005 * (number % 4))
            place.first_token()
            await asyncio.sleep(0.0005)
        finally:
            place.leave(number % 7)

    tasks = [asyncio.create_task(client(number)) for number in range(300)]
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            await asyncio.sleep(0.0001 * (number % 2))
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    now = made.snapshot()
    assert (now.in_flight, now.queued, now.slots_in_use, now.prefill_tokens) == (0, 0, 0, 0)
    assert sum(not task.cancelled() for task in tasks) >= 200
