"""The supervisor against an engine that is killed, frozen or left behind. A real engine, restarted each time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from service.config import Settings
from service.engine import liveness
from service.engine.config import EngineConfig
from service.engine.liveness import CANARIES_FAILED, MIN_STALL_S, LivenessMonitor
from service.engine.process import end_leftovers
from service.engine.supervisor import EngineState, Supervisor
from service.errors import HatrackError
from tests.support.processes import engine_processes, is_running, running

READY_TIMEOUT_S = 600.0
STALL_S = 0.1
"""Less than a step takes on some machines: a busy engine is not restarted all the same."""
BUSY_LOOPS = 15
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def config(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig.from_settings(
        Settings(
            home=tmp_path_factory.mktemp("supervised"),
            base_model=str(base_dir),
            engine_slots=2,
            engine_resident=2,
            engine_device="cpu",
            engine_stall_s=STALL_S,
            engine_canary_s=1,
        )
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def supervisor(config: EngineConfig) -> AsyncIterator[Supervisor]:
    started = Supervisor(config)
    await started.start()
    await wait_until_ready(started, epoch=1)
    yield started
    await started.stop()


async def wait_until_ready(supervisor: Supervisor, *, epoch: int) -> None:
    """Wait until the engine of this epoch, or a later one, is ready."""
    changed = asyncio.Event()
    supervisor.on_change(lambda state: changed.set())
    async with asyncio.timeout(READY_TIMEOUT_S):
        while supervisor.epoch < epoch or not supervisor.ready:
            await changed.wait()
            changed.clear()


async def answer(supervisor: Supervisor, tokens: int = 4) -> object:
    body = {
        "model": supervisor.config.base_name,
        "prompt": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    return await supervisor.client.post_json("/v1/completions", body, timeout_s=300)


# the API server is killed in test_faults.py, under load, and in test_adopt.py: each start takes half a minute
@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
async def test_kill_9_of_an_engine_process_starts_a_new_engine_and_leaves_none_of_the_old(
    supervisor: Supervisor, name: str
) -> None:
    old, epoch = engine_processes(supervisor.config.record), supervisor.epoch
    states: list[EngineState] = []
    supervisor.on_change(states.append)
    flying = asyncio.create_task(answer(supervisor, tokens=1500))
    await asyncio.sleep(1)
    old[name].kill()
    with pytest.raises(HatrackError) as lost:
        await flying
    assert lost.value.status in (500, 502, 503)
    await wait_until_ready(supervisor, epoch=epoch + 1)
    state_names = [state.name for state in states]
    assert state_names[-1] == "ready"
    assert "down" in state_names
    assert "starting" in state_names
    assert all(state.reason for state in states)
    assert running(old.values()) == []
    assert await answer(supervisor)


async def test_a_busy_engine_is_not_restarted(supervisor: Supervisor) -> None:
    epoch = supervisor.epoch
    before = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < before + 2 * MIN_STALL_S:  # nobody calls saw_tokens here
        await asyncio.gather(*(answer(supervisor, tokens=200) for _ in range(4)))
    assert (supervisor.epoch, supervisor.ready) == (epoch, True)


async def test_a_frozen_engine_is_replaced_when_requests_wait_for_it(supervisor: Supervisor) -> None:
    old, epoch = engine_processes(supervisor.config.record), supervisor.epoch
    flying = asyncio.create_task(answer(supervisor, tokens=1500))
    await asyncio.sleep(1)
    old["Worker"].suspend()
    with pytest.raises(HatrackError):
        await flying
    await wait_until_ready(supervisor, epoch=epoch + 1)
    assert not is_running(old["Worker"])
    assert await answer(supervisor)


async def test_a_frozen_engine_is_replaced_while_nobody_asks(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its canaries, three of which have to fail; they wait less long here than they do."""
    monkeypatch.setattr(LivenessMonitor.canary, "__defaults__", (5.0,))
    monkeypatch.setattr(liveness, "UNDELAYED_S", 2.0)
    old, epoch = engine_processes(supervisor.config.record), supervisor.epoch
    old["Worker"].suspend()
    await wait_until_ready(supervisor, epoch=epoch + 1)
    assert not is_running(old["Worker"])
    assert await answer(supervisor)


@contextmanager
def starved(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """These processes share one core with busy loops, each of a session of its own: the kernel may share by session."""
    cores = os.sched_getaffinity(0)
    threads = [thread.id for process in processes for thread in process.threads()]
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(BUSY_LOOPS)
    ]
    try:
        for pid in (*threads, *(loop.pid for loop in loops)):
            os.sched_setaffinity(pid, {min(cores)})
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        for thread in threads:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)


async def test_an_idle_engine_that_gets_no_core_is_not_replaced(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its canaries wait less long here than they do."""
    monkeypatch.setattr(LivenessMonitor.canary, "__defaults__", (0.5,))
    epoch = supervisor.epoch
    with starved(engine_processes(supervisor.config.record).values()):
        async with asyncio.timeout(READY_TIMEOUT_S):
            while sum("slow to answer a canary" in line.getMessage() for line in caplog.records) < CANARIES_FAILED + 1:
                assert supervisor.state.name == "ready", supervisor.state.reason
                await asyncio.sleep(0.1)
    assert (supervisor.epoch, supervisor.ready) == (epoch, True)
    assert await answer(supervisor)


async def test_a_stopped_supervisor_leaves_no_process_and_no_record(supervisor: Supervisor) -> None:
    old = engine_processes(supervisor.config.record)
    await supervisor.stop()
    assert running(old.values()) == []
    assert not supervisor.config.record.exists()


OWNER = """
import asyncio, sys
from pathlib import Path
from service.config import Settings
from service.engine.config import EngineConfig
from service.engine.supervisor import Supervisor

async def main():
    settings = Settings(home=Path(sys.argv[1]), base_model=sys.argv[2], engine_device="cpu", engine_slots=2)
    supervisor = Supervisor(EngineConfig.from_settings(settings))
    await supervisor.start()
    while not supervisor.ready:
        await asyncio.sleep(0.1)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_engine_processes_of_a_killed_gateway_are_ended_by_the_next_start(base_dir: Path, tmp_path: Path) -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(tmp_path), str(base_dir), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    async with asyncio.timeout(READY_TIMEOUT_S):
        assert await owner.stdout.readline() == b"ready\n"
    config = EngineConfig.from_settings(Settings(home=tmp_path, base_model=str(base_dir), engine_device="cpu"))
    left = engine_processes(config.record)
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()
    left["server"].kill()  # the worst case: the only process that still shows its environment is gone too
    await asyncio.sleep(0.5)
    ended = await asyncio.to_thread(end_leftovers, config.directory)
    assert {left["EngineCore"].pid, left["Worker"].pid} <= set(ended) | {
        process.pid for process in left.values() if not is_running(process)
    }
    assert running(left.values()) == []
    assert not config.record.exists()
