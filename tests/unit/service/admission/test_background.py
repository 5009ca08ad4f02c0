"""Proofs and warming at the gate, and when background requests are let in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.admission.background import BackgroundEngine
from service.admission.queue import AdmissionQueue
from service.admission.queued import Stage
from service.errors import BadGateway, EngineUnavailable, HatrackError
from tests.unit.service.admission.test_queue import State, later, settle
from tests.unit.service.admission.test_scheduler import stages
from tests.unit.service.admission.world import ClockedScheduler, policy, request


class Probed:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False
        self.failing: set[str] = set()
        self.at_once: asyncio.Event | None = None
        """Set when all that are waited for have been asked: nobody is answered before."""
        self.expected = 0

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        self.asked.append(model)
        if self.fails or model in self.failing:
            raise BadGateway("no")
        if self.at_once is not None:
            if len(self.asked) == self.expected:
                self.at_once.set()
            await self.at_once.wait()
        return [[-1.0] * 4 for _ in texts]


async def test_it_asks_behind_callers_and_gives_its_place_back() -> None:
    gate, engine = AdmissionQueue(policy(width=1, common=1, background_patience_s=1000)), Probed()
    gated = BackgroundEngine(engine, gate, "base")
    caller = await gate.enter(request("a"), later())
    question = asyncio.create_task(gated.logprobs("d" * 64, ["two words", "three words here"]))
    second = asyncio.create_task(gate.enter(request("a"), later()))
    await settle()
    caller.leave(5)
    place = await second
    assert engine.asked == [], "the caller that came later goes first"
    place.leave(5)
    assert await question == [[-1.0] * 4] * 2
    assert len(engine.asked) == 2, "one text after another: a caller waits for the step of one at most"
    now = gate.snapshot()
    assert (now.admitted_background, now.in_flight, now.slots_in_use) == (1, 0, 0)


async def test_the_base_needs_no_slot_and_an_error_gives_the_place_back() -> None:
    gate, engine = AdmissionQueue(policy(slots=1)), Probed()
    gated = BackgroundEngine(engine, gate, "base")
    holder = await gate.enter(request("a"), later())
    assert await gated.logprobs("base", ["x"])
    engine.fails = True
    with pytest.raises(BadGateway):
        await gated.logprobs("base", ["x"])
    holder.leave(1)
    assert gate.snapshot().in_flight == 0


async def test_without_an_engine_it_is_refused_at_once() -> None:
    gate = AdmissionQueue(policy())
    gate.engine_changed(State("starting"))
    with pytest.raises(EngineUnavailable):
        await BackgroundEngine(Probed(), gate, "base").logprobs("base", ["x"])


A, B = "a" * 64, "b" * 64


async def test_models_are_asked_at_the_same_time_and_give_their_places_back() -> None:
    gate, engine = AdmissionQueue(policy(slots=4, background_width=2)), Probed()
    engine.at_once, engine.expected = asyncio.Event(), 3
    async with asyncio.timeout(30):
        base, adapter, neighbour = await BackgroundEngine(engine, gate, "base").logprobs_together(A, B, ["x"])
    assert engine.asked == ["base", A, B]
    assert base == adapter == neighbour == [[-1.0] * 4]
    assert (gate.snapshot().in_flight, gate.snapshot().slots_in_use) == (0, 0)


async def test_a_neighbour_without_a_slot_or_an_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.admission.background.NEIGHBOUR_MAX_WAIT_S", 0.01)
    gate, engine = AdmissionQueue(policy(slots=2, background_width=2)), Probed()
    gated = BackgroundEngine(engine, gate, "base")
    *_, neighbour = await gated.logprobs_together(A, B, ["x"])  # one slot is left to callers
    assert (neighbour, engine.asked) == (None, ["base", A])
    gated = BackgroundEngine(engine, AdmissionQueue(policy(slots=4, background_width=2)), "base")
    engine.failing = {B}
    *_, neighbour = await gated.logprobs_together(A, B, ["x"])
    assert neighbour is None


@pytest.mark.parametrize("failing", ["base", A])
async def test_what_the_engine_says_of_the_others_is_an_error(failing: str) -> None:
    gate, engine = AdmissionQueue(policy(slots=4)), Probed()
    engine.failing = {failing}
    with pytest.raises(HatrackError):
        await BackgroundEngine(engine, gate, "base").logprobs_together(A, None, ["x"])
    assert gate.snapshot().in_flight == 0


# its turn


def test_background_goes_only_where_no_caller_waits_and_keeps_to_its_width() -> None:
    clocked = ClockedScheduler(width=4, common=4, background_width=2, slots=None)
    entries = [clocked.offer(background=True) for _ in range(3)]
    assert stages(*entries) == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    callers = [clocked.offer() for _ in range(3)]
    assert stages(*callers) == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    assert clocked.leave(entries[0]) == [callers[2]], "the caller is before the background that waits longer"
    assert clocked.leave(entries[1]) == [entries[2]]


def test_patient_background_goes_in_beside_waiting_callers_one_at_a_time() -> None:
    clocked = ClockedScheduler(width=4, common=1, background_patience_s=5)
    running = clocked.offer()
    backs = [clocked.offer("b", background=True) for _ in range(2)]
    callers = [clocked.offer() for _ in range(10)]
    clocked.now += 4
    assert clocked.leave(running) == [callers[0]]
    clocked.now += 2
    assert clocked.leave(callers[0]) == [backs[0]]
    clocked.now += 2
    assert clocked.leave(backs[0]) == [callers[1]], "the next one is patient anew"
    clocked.now += 4
    assert clocked.leave(callers[1]) == [backs[1]]


def test_patient_background_is_not_passed_over_for_ever() -> None:
    clocked = ClockedScheduler(width=1, common=1, slots=1)
    running = clocked.offer("a")
    back = clocked.offer("b", background=True)
    for _ in range(200):
        clocked.offer("a", tokens=10) if clocked.scheduler.queued < 50 else None
        clocked.now += 1
        admitted = clocked.leave(running, 10)
        if back in admitted:
            break
        (running,) = admitted
    assert back.stage is Stage.ADMITTED
    assert clocked.now < 1000 + 60
