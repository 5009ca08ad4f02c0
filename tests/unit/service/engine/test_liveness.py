"""When an engine counts as stalled: it is silent, and its own metrics stand still. Time is the test's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from service.engine import liveness
from service.engine.client import EngineClient
from service.engine.liveness import MIN_STALL_S, EngineFailed, LivenessMonitor
from service.engine.process import EngineProcess
from service.errors import EngineUnavailable

TICK_S = 0.25
LONG_S = 120.0


class BusyEngine:
    """One with a request in flight, of which only the metrics are heard: ``metrics`` makes them from the time, s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, metrics: Callable[[float], str], stall_s: float) -> None:
        self.now, self.metrics, self.awaiting, self.reading_takes_s = 1000.0, metrics, 1, 0.0
        self.in_flight = 1
        monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.reason = ""
        client = cast(EngineClient, self)
        self.monitor = LivenessMonitor(client, client, base_name="base", stall_s=stall_s, canary_s=10**9)

    async def get_text(self, path: str) -> str:
        assert path == "/metrics"
        self.now += self.reading_takes_s
        return self.metrics(self.now)

    async def watch(self, seconds: float = LONG_S) -> float | None:
        """Look as often as a supervisor does: after how long the engine has failed, s; None if it has not."""
        began = self.now
        while self.now < began + seconds:
            self.now += TICK_S
            try:
                await self.monitor.check()
            except EngineFailed as error:
                self.reason = str(error)
                return self.now - began
        return None


def generating(every_s: float) -> Callable[[float], str]:
    """Metrics of an engine whose steps take so long."""
    return lambda now: f"vllm:generation_tokens_total {now // every_s}\n"


@pytest.mark.parametrize("stall_s", [0.01, 1.0, 60.0])
@pytest.mark.parametrize("every_s", [0.1, 1.5, 4.0])
async def test_a_busy_engine_has_not_stalled_whatever_is_set(
    monkeypatch: pytest.MonkeyPatch, stall_s: float, every_s: float
) -> None:
    assert await BusyEngine(monkeypatch, generating(every_s), stall_s).watch() is None


async def test_a_prompt_that_is_read_in_pieces_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(now: float) -> str:
        return f'vllm:generation_tokens_total 7.0\nvllm:kv_cache_usage_perc{{engine="0"}} {now // 3}\n'

    assert await BusyEngine(monkeypatch, reading, stall_s=6).watch() is None


async def test_a_slow_answer_to_the_look_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BusyEngine(monkeypatch, generating(1.0), stall_s=5)
    engine.reading_takes_s = 9.0
    assert await engine.watch() is None


def still(_: float) -> str:
    return "vllm:generation_tokens_total 7.0\n"


def answering_alone(now: float) -> str:
    return f"vllm:generation_tokens_total 7.0\nhttp_requests_total {now}\nprocess_cpu_seconds_total {now}\n"


def silent(_: float) -> str:
    raise EngineUnavailable("the engine does not answer /metrics")


@pytest.mark.parametrize("metrics", [still, answering_alone, silent])
@pytest.mark.parametrize("stall_s", [0.01, 20.0])
async def test_an_engine_whose_metrics_stand_still_has_stalled(
    monkeypatch: pytest.MonkeyPatch, metrics: Callable[[float], str], stall_s: float
) -> None:
    engine = BusyEngine(monkeypatch, metrics, stall_s)
    failed_s = await engine.watch()
    assert failed_s is not None
    assert "metrics stand still" in engine.reason
    longest_s = max(stall_s, MIN_STALL_S)
    # a first reading, which says nothing, may come after METRICS_S
    assert longest_s < failed_s <= longest_s + liveness.METRICS_S + 3 * TICK_S


@pytest.mark.parametrize("in_flight", [0, 1])
async def test_time_in_which_it_owes_nothing_is_no_silence_and_ends_none(
    monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    engine = BusyEngine(monkeypatch, still, stall_s=10)
    await engine.watch(8)
    engine.in_flight, engine.awaiting = in_flight, 0
    assert await engine.watch(LONG_S) is None, "nobody waits for it, or a slow client has not read what it sent"
    engine.in_flight = engine.awaiting = 1
    assert await engine.watch(2) is None
    assert await engine.watch(LONG_S) is not None, "callers who give up one after the other are no sign of life"
    engine.monitor.saw_tokens()
    assert await engine.watch(9) is None
    engine.monitor.saw_tokens()
    failed_s = await engine.watch()
    assert failed_s is not None
    assert failed_s > 10


class Processes:
    """Stands for an engine of our own, whose processes use so many cores and never wait for one, or get none."""

    def __init__(self, engine: BusyEngine, cores: float, *, starved: bool = False) -> None:
        self._engine, self.cores, self._starved = engine, cores, starved

    def undelayed_time(self) -> Processes:
        self._began = self._engine.now
        return self

    def read(self) -> float:
        return 0.0 if self._starved else self._engine.now - self._began


def of_ours(engine: BusyEngine, cores: float, *, starved: bool = False) -> BusyEngine:
    engine.monitor.reset(cast(EngineProcess, Processes(engine, cores, starved=starved)))
    return engine


@pytest.mark.parametrize("every_s", [8.0, 50.0])
async def test_a_long_step_that_computes_is_no_stall_whatever_is_set(
    monkeypatch: pytest.MonkeyPatch, every_s: float
) -> None:
    assert await of_ours(BusyEngine(monkeypatch, generating(every_s), 0.01), cores=1.6).watch() is None
    assert await of_ours(BusyEngine(monkeypatch, generating(every_s), 0.01), cores=0.01).watch() is not None


async def test_an_engine_that_gets_no_core_has_not_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await of_ours(BusyEngine(monkeypatch, still, stall_s=20), cores=0.0, starved=True).watch() is None


@pytest.mark.parametrize(("cores", "longest_s"), [(0.01, 20.0), (2.0, liveness.LONG_STEP_S)])
async def test_an_engine_of_ours_that_hangs_has_stalled_also_one_that_computes_for_ever(
    monkeypatch: pytest.MonkeyPatch, cores: float, longest_s: float
) -> None:
    failed_s = await of_ours(BusyEngine(monkeypatch, still, stall_s=20), cores).watch()
    assert failed_s is not None
    assert longest_s < failed_s <= longest_s + 2 * liveness.METRICS_S + 3 * TICK_S


async def test_a_single_reading_that_fails_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_once(now: float) -> str:
        if 1009 < now < 1012:
            raise EngineUnavailable("the engine does not answer /metrics")
        return generating(1.0)(now)

    engine = BusyEngine(monkeypatch, fails_once, stall_s=5)
    engine.reading_takes_s = 5.0
    assert await engine.watch() is None


async def test_a_token_that_comes_during_the_reading_saves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_to_tell(now: float) -> str:
        if now > 1012:
            engine.monitor.saw_tokens()
        return still(now)

    engine = BusyEngine(monkeypatch, slow_to_tell, stall_s=10)
    assert await engine.watch(40) is None


async def test_what_waits_for_slow_clients_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BusyEngine(monkeypatch, still, stall_s=10)
    engine.awaiting = 0
    assert await engine.watch() is None, "the engine has answered; its client does not read"
    engine.awaiting = 1
    assert await engine.watch(9) is None
    assert await engine.watch() is not None
