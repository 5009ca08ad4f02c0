"""The engine's time: shared equally among the requests that are in it, nothing lost and nothing counted twice."""

from __future__ import annotations

import random

import pytest

from service.engine.busy import EngineClock


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(clock: Clock) -> EngineClock:
    return EngineClock(clock)


def test_a_request_alone_is_charged_its_whole_time_and_idle_time_is_nobodys(clock: Clock, engine: EngineClock) -> None:
    clock.now += 7
    entered = engine.enter()
    clock.now += 3
    assert engine.leave(entered) == pytest.approx(3)
    clock.now += 11
    assert engine.busy_s == pytest.approx(3)


def test_requests_at_the_same_time_share_it(clock: Clock, engine: EngineClock) -> None:
    long = engine.enter()
    clock.now += 2  # alone
    short = engine.enter()
    clock.now += 4  # two
    assert engine.leave(short) == pytest.approx(2)
    clock.now += 1  # alone
    assert engine.leave(long) == pytest.approx(2 + 2 + 1)
    assert engine.busy_s == pytest.approx(7)


def test_the_shares_add_up_to_the_busy_time_whatever_ran_beside_what(clock: Clock, engine: EngineClock) -> None:
    chance = random.Random(0)
    running: list[float] = []
    shares = 0.0
    for _ in range(2_000):
        clock.now += chance.expovariate(10)
        if running and chance.random() < 0.5:
            shares += engine.leave(running.pop(chance.randrange(len(running))))
        elif len(running) < 40:
            running.append(engine.enter())
    while running:
        clock.now += 0.1
        shares += engine.leave(running.pop())
    assert engine.open == 0
    assert shares == pytest.approx(engine.busy_s)
    assert 0 < engine.busy_s <= clock.now - 100
