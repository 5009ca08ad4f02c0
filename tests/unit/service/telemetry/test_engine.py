"""The engine's numbers: state, restarts, and what vLLM says of itself, if it says anything."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from service.engine.watched import EngineState, StateName
from service.errors import EngineUnavailable
from service.telemetry import metrics
from service.telemetry.engine import FORWARDED, STATES, EngineSource, forwarded_metrics
from tests.unit.service.telemetry.support import Samples, read, value

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="smol"} 3.0
vllm:num_requests_running{engine="1",model_name="smol"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="smol",reason="capacity"} 9.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="smol"} 0.25
# HELP vllm:corrupted_requests_total Corrupted requests.
# TYPE vllm:corrupted_requests_total counter
vllm:corrupted_requests_total{engine="0",model_name="smol"} 4.0
vllm:corrupted_requests_created{engine="0",model_name="smol"} 1.7e+09
"""


class Engine:
    """An engine that gives ``text``, or fails where there is none."""

    def __init__(self, text: str | None = VLLM) -> None:
        self.state = EngineState("down", "not started", time.time())
        self.text = text
        self.asked = 0
        self.is_placed = True
        self._listeners: list[Callable[[EngineState], None]] = []

    def on_change(self, listener: Callable[[EngineState], None]) -> None:
        self._listeners.append(listener)

    def become(self, *names: StateName) -> None:
        for name in names:
            self.state = EngineState(name, "of the test", time.time())
            for listener in self._listeners:
                listener(self.state)

    async def get_text(self, path: str, *, timeout_s: float) -> str:
        self.asked += 1
        assert (path, timeout_s) == ("/metrics", 1.0)
        if self.text is None:
            raise EngineUnavailable("it is silent")
        return self.text


def source(engine: Engine) -> EngineSource:
    return EngineSource(engine, engine, slots=8, resident_limit=256)


async def scrape(shown: EngineSource) -> Samples:
    return read(await shown.families())


async def test_one_state_is_1_and_the_others_are_0() -> None:
    engine = Engine()
    shown = source(engine)
    for name in ("starting", "ready", "stalled", "down"):
        engine.become(name)
        samples = await scrape(shown)
        assert {state: value(samples, "hatrack_engine_state", state=state) for state in STATES} == {
            state: float(state == name) for state in STATES
        }
        assert value(samples, "hatrack_engine_state_since_timestamp_seconds") == engine.state.since
    assert value(samples, "hatrack_engine_slots") == 8
    assert value(samples, "hatrack_engine_resident_limit") == 256


async def test_the_first_start_is_no_restart_and_each_loss_that_is_made_good_is_one() -> None:
    engine = Engine()
    shown = source(engine)
    engine.become("starting", "ready")
    assert value(await scrape(shown), "hatrack_engine_restarts_total") == 0
    engine.become("stalled", "ready", "stalled", "down", "starting", "down", "starting", "ready")
    samples = await scrape(shown)
    assert value(samples, "hatrack_engine_restarts_total") == 2
    assert 0 <= value(samples, "hatrack_engine_start_seconds") < 60


async def test_vllms_own_numbers_are_added_up_over_its_cores() -> None:
    engine = Engine()
    shown = source(engine)
    engine.become("starting", "ready")
    samples = await scrape(shown)
    assert value(samples, "hatrack_engine_requests_running") == 5
    assert value(samples, "hatrack_engine_kv_cache_usage_ratio") == 0.25
    assert value(samples, "hatrack_engine_corrupted_requests_total") == 4
    assert value(samples, "hatrack_engine_scrape_errors_total") == 0
    assert not [name for name, _ in samples if name == "hatrack_engine_requests_waiting"]


@pytest.mark.parametrize("text", [None, "vllm:num_requests_running{engine= much\n"])
async def test_an_engine_that_does_not_answer_is_counted_and_its_numbers_are_missing(text: str | None) -> None:
    engine = Engine(text)
    shown = source(engine)
    engine.become("ready")
    await scrape(shown)
    samples = await scrape(shown)
    assert value(samples, "hatrack_engine_scrape_errors_total") == 2
    assert value(samples, "hatrack_engine_state", state="ready") == 1
    assert not [name for name, _ in samples if name == "hatrack_engine_requests_running"]


async def test_an_engine_that_is_not_there_is_not_asked() -> None:
    engine = Engine(None)
    shown = source(engine)
    engine.become("starting")
    assert value(await scrape(shown), "hatrack_engine_scrape_errors_total") == 0
    assert engine.asked == 0


def test_counters_stay_counters() -> None:
    for theirs, ours in FORWARDED.items():
        assert theirs.endswith("_total") == (ours.kind == "counter")
    assert forwarded_metrics("") == {}
    assert forwarded_metrics(VLLM)[metrics.ENGINE_RUNNING] == 5
