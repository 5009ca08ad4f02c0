"""Proofs and warming at the gate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.admission.background import GatedEngine
from service.admission.gate import Gate
from service.errors import BadGateway, EngineUnavailable
from tests.unit.service.admission.test_gate import State, later, settle
from tests.unit.service.admission.world import policy, ticket


class Probed:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        self.asked.append(model)
        if self.fails:
            raise BadGateway("no")
        return [[-1.0] * 4 for _ in texts]


async def test_it_asks_behind_callers_and_gives_its_place_back() -> None:
    gate, engine = Gate(policy(width=1, common=1, background_patience_s=1000)), Probed()
    gated = GatedEngine(engine, gate, "base")
    caller = await gate.enter(ticket("a"), later())
    question = asyncio.create_task(gated.logprobs("d" * 64, ["two words", "three words here"]))
    second = asyncio.create_task(gate.enter(ticket("a"), later()))
    await settle()
    caller.leave(5)
    place = await second
    assert engine.asked == [], "the caller that came later goes first"
    place.leave(5)
    assert await question == [[-1.0] * 4] * 2
    now = gate.snapshot()
    assert (now.admitted_background, now.in_flight, now.slots_in_use) == (1, 0, 0)


async def test_the_base_needs_no_slot_and_an_error_gives_the_place_back() -> None:
    gate, engine = Gate(policy(slots=1)), Probed()
    gated = GatedEngine(engine, gate, "base")
    holder = await gate.enter(ticket("a"), later())
    assert await gated.logprobs("base", ["x"])
    engine.fails = True
    with pytest.raises(BadGateway):
        await gated.logprobs("base", ["x"])
    holder.leave(1)
    assert gate.snapshot().in_flight == 0


async def test_without_an_engine_it_is_refused_at_once() -> None:
    gate = Gate(policy())
    gate.engine_changed(State("starting"))
    with pytest.raises(EngineUnavailable):
        await GatedEngine(Probed(), gate, "base").logprobs("base", ["x"])
