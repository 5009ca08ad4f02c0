"""The gate in front of an engine in simulated time: order and bounds, the same in every run."""

from __future__ import annotations

import pytest

from service.admission.policy import Policy
from service.admission.scheduler import Scheduler
from tests.unit.service.admission.world import Engine, Request, by_model, poisson

STEADY = tuple(f"steady{number}" for number in range(4))
FAIR = Policy(width=64, common=20, slots=8, queue_size=1000, queue_share=1.0, prefill=128)
FIFO = Policy(width=10_000, common=10_000, slots=None, queue_size=0)
FLOOD_AT = 10.0
END = 120.0


def flooded(scheduler: Scheduler, *, apart: bool = False, seed: int = 0) -> Engine:
    """Four adapters at half of what the engine can do; from FLOOD_AT a fifth over 64 connections."""
    engine = Engine(scheduler)
    for number, model in enumerate(STEADY):
        poisson(engine, model, (f"p{number}" if apart else "p", "k"), 0.5, END, seed * 10 + number)
    flow = ("q", "l") if apart else ("p", "k")
    for number in range(64):
        engine.send(Request("flood", flow, FLOOD_AT + number / 1000, 42, 48, True))
    engine.run(END)
    return engine


def waits(engine: Engine, *, since: float = FLOOD_AT) -> list[float]:
    return sorted(
        request.first - request.sent for request in engine.finished if request.model in STEADY and request.sent >= since
    )


@pytest.mark.parametrize("apart", [False, True], ids=["one key", "five projects"])
@pytest.mark.parametrize("seed", range(3))
def test_a_flood_does_not_stand_before_the_others(scheduler_class: type[Scheduler], seed: int, apart: bool) -> None:
    """Whoever comes after 64 others waits for a handful of them; first come, first served it waits for most."""
    fair = flooded(scheduler_class(FAIR), apart=apart, seed=seed)
    fifo = flooded(scheduler_class(FIFO), apart=apart, seed=seed)
    before = [request.ahead for request in fair.finished if request.model in STEADY and request.sent > FLOOD_AT + 1]
    assert len(before) > 150
    assert max(before) <= 8
    assert waits(fair)[-1] < waits(fifo)[len(waits(fifo)) // 2]
    assert fair.most_running <= FAIR.width
    assert fair.most_adapters <= 5


@pytest.mark.parametrize("seed", range(3))
def test_the_flood_costs_little_of_what_the_engine_gives(scheduler_class: type[Scheduler], seed: int) -> None:
    fair, fifo = flooded(scheduler_class(FAIR), seed=seed), flooded(scheduler_class(FIFO), seed=seed)
    models = (*STEADY, "flood")
    total = {id(engine): sum(engine.tokens(model) for model in models) for engine in (fair, fifo)}
    assert total[id(fair)] >= 0.9 * total[id(fifo)]
    assert fair.tokens("flood") > max(fair.tokens(model) for model in STEADY), "what the others leave is the flood's"


def test_a_flow_alone_has_all_the_common_places(scheduler_class: type[Scheduler]) -> None:
    engine = Engine(scheduler_class(FAIR))
    for number in range(64):
        engine.send(Request("flood", ("p", "k"), number / 1000, 42, 48, True))
    engine.run(30)
    assert engine.most_running == FAIR.common


def test_floods_of_two_projects_get_the_same_tokens_whatever_their_number_of_connections(
    scheduler_class: type[Scheduler],
) -> None:
    engine = Engine(scheduler_class(FAIR))
    for number in range(60):
        engine.send(Request("a", ("p", f"k{number % 3}"), number / 1000, 42, 60, True))
    for number in range(30):
        engine.send(Request("b", ("q", "l"), number / 1000, 42, 30, True))
    engine.run(END)
    assert engine.service("a") == pytest.approx(engine.service("b"), rel=0.1)


@pytest.mark.parametrize("connections", [1, 4])
def test_four_times_as_many_adapters_as_slots(scheduler_class: type[Scheduler], connections: int) -> None:
    """Nobody starves; in vLLM's own queue, which the same engine has, somebody does with several connections each."""
    done = {}
    for policy in (Policy(width=64, common=20, slots=4, queue_size=1000, queue_share=1.0, prefill=128), FIFO):
        engine = Engine(scheduler_class(policy), slots=4)
        for number in range(16):
            for connection in range(connections):
                tokens = 24 + (7 * number + 13 * connection) % 48
                engine.send(Request(f"a{number}", ("p", "k"), 0.001 * number, 42, tokens, True))
        engine.run(END)
        done[policy.slots] = engine
    fair, plain = done[4], done[None]
    assert fair.most_adapters <= 4
    served = {model: sum(one.done for one in requests) for model, requests in by_model(fair.finished).items()}
    assert len(served) == 16
    longest = max(request.first - request.sent for request in fair.finished)
    assert longest <= 4 * (FAIR.turn_s + 2 * 72 * 0.1), "four turns, each with the ends of two of the longest requests"
    if connections > 1:
        assert min(served.values()) > 2 * min(plain.tokens(f"a{number}") for number in range(16))
