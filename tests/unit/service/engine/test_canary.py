"""Canaries: an idle engine that owes an answer has hung, unless its processes wait for a core. Processes are real."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from service.engine import liveness
from service.engine.client import EngineClient
from service.engine.contract import TOKEN_VARIABLE
from service.engine.liveness import EngineFailed, LivenessMonitor
from service.engine.process import EngineProcess
from tests.unit.service.engine.fake import FakeEngine, config_for

SLEEPS, COMPUTES = "time.sleep(600)", "exec('while True: pass')"
TIMEOUT_S = 0.05
UNDELAYED_S = 0.5
Start = Callable[[str], EngineProcess]


@contextmanager
def process(code: str, token: str = "", cores: set[int] | None = None, *, yields: bool = False) -> Iterator[int]:
    """The id of a process that does this and nothing else; with ``yields`` it gets a core when nobody else wants it."""
    started = subprocess.Popen(
        [sys.executable, "-c", f"import time; print(flush=True); {code}"],
        env={"PATH": os.environ["PATH"], TOKEN_VARIABLE: token},
        stdout=subprocess.PIPE,
    )
    assert started.stdout is not None
    started.stdout.readline()
    if cores is not None:
        os.sched_setaffinity(started.pid, cores)
    if yields:
        os.sched_setscheduler(started.pid, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield started.pid
    finally:
        started.kill()
        started.wait(60)
        started.stdout.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts an engine that `sleeps`, is `frozen`, `computes`, or is `starved`: it would compute, on a core that
    another process has."""
    with ExitStack() as stack:

        def of(kind: str) -> EngineProcess:
            token = secrets.token_hex(16)
            core = {min(os.sched_getaffinity(0))} if kind == "starved" else None
            code = SLEEPS if kind == "sleeps" else COMPUTES
            pid = stack.enter_context(process(code, token, core, yields=kind == "starved"))
            if kind == "starved":
                stack.enter_context(process(COMPUTES, "", core))
            if kind == "frozen":
                psutil.Process(pid).suspend()
            engine = EngineProcess(token, pid)
            stack.callback(engine.release)
            return engine

        yield of


def measure(engine: EngineProcess, seconds: float = 2.0) -> tuple[float, float, float]:
    """How long it was watched, how much of that counts, and how much CPU time it used, s."""
    watched, counted_s = psutil.Process(engine.pid), 0.0
    before = sum(watched.cpu_times()[:2])
    undelayed, began = engine.undelayed_time(), time.monotonic()
    while time.monotonic() < began + seconds:
        time.sleep(0.05)
        counted_s = undelayed.read()
    passed_s = time.monotonic() - began
    return passed_s, counted_s, sum(watched.cpu_times()[:2]) - before


@pytest.mark.parametrize("kind", ["sleeps", "frozen"])
def test_all_time_counts_of_a_process_that_wants_no_core(start: Start, kind: str) -> None:
    passed_s, counted_s, _ = measure(start(kind))
    assert counted_s > 0.8 * passed_s


@pytest.mark.parametrize("kind", ["computes", "starved"])
def test_only_the_time_on_a_core_counts_of_a_process_that_wants_one(start: Start, kind: str) -> None:
    passed_s, counted_s, used_s = measure(start(kind))
    assert 0.5 * used_s - 0.1 < counted_s < used_s + 0.1
    if kind == "starved":
        assert counted_s < 0.5 * passed_s


class Watched:
    """A monitor over an engine that answers as a test has it."""

    def __init__(self, fake: FakeEngine, client: EngineClient, probe: EngineClient) -> None:
        self.fake, self.client = fake, client
        self.monitor = LivenessMonitor(client, probe, base_name="base", stall_s=600, canary_s=0.01)


@pytest_asyncio.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(LivenessMonitor.canary, "__defaults__", (TIMEOUT_S,))
    monkeypatch.setattr(liveness, "UNDELAYED_S", UNDELAYED_S)
    fake = FakeEngine.of(config_for(tmp_path))
    client, probe = (EngineClient(socket=str(fake.socket)) for _ in range(2))
    await fake.start()
    yield Watched(fake, client, probe)
    await client.close()
    await probe.close()
    await fake.stop()


async def test_an_engine_that_gets_no_core_may_take_longer(watched: Watched, start: Start) -> None:
    watched.fake.answers_after_s = 6 * UNDELAYED_S
    assert await watched.monitor.canary(engine=start("starved"))


@pytest.mark.parametrize("kind", ["sleeps", "frozen", "computes"])
async def test_an_engine_that_hangs_does_not(watched: Watched, start: Start, kind: str) -> None:
    watched.fake.answers_after_s = 600
    assert not await watched.monitor.canary(engine=start(kind))


async def test_no_engine_may_take_for_ever(watched: Watched, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "MAX_CANARY_S", 2.0)
    watched.fake.answers_after_s = 600
    assert not await watched.monitor.canary(engine=start("starved"))


async def test_an_engine_of_somebody_else_has_the_time_that_is_set(watched: Watched) -> None:
    watched.fake.answers_after_s = 600
    assert not await watched.monitor.canary()


async def check_until_it_fails(monitor: LivenessMonitor) -> str:
    while True:
        try:
            await monitor.check()
        except EngineFailed as error:
            return str(error)


async def test_an_idle_engine_that_hangs_is_found(watched: Watched, start: Start) -> None:
    watched.fake.answers_after_s = 600
    watched.monitor.reset(start("sleeps"))
    assert "3 canary requests in a row" in await check_until_it_fails(watched.monitor)


async def test_a_canary_does_not_wait_behind_callers(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LivenessMonitor.canary, "__defaults__", (600.0,))
    watched.fake.answers_after_s = 600
    while watched.monitor._asking is None:
        assert await watched.monitor.check() is None
    watched.client.in_flight = 1
    assert await watched.monitor.check() is None, "its canary is neither answered nor failed"
    watched.client.in_flight = 0
    watched.fake.answers_after_s = 0
    before = watched.monitor._last_sign
    while watched.monitor._last_sign == before:
        assert await watched.monitor.check() is None
