"""The supervisor against an engine that is killed, frozen or left behind. The real engine, restarted each time."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import psutil
import pytest
import pytest_asyncio

from service.config import Settings
from service.engine.config import EngineConfig
from service.engine.process import end_leftovers, members
from service.engine.supervisor import EngineState, Supervisor
from service.errors import HatrackError

READY_TIMEOUT_S = 600.0
STALL_S = 8.0
"""The counters are read every 2 s, and only a second reading shows what came since: 4 s would leave nothing over."""
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
    await ready(started, epoch=1)
    yield started
    await started.stop()


async def ready(supervisor: Supervisor, *, epoch: int) -> None:
    """Wait until the engine of this epoch, or a later one, is ready."""
    changed = asyncio.Event()
    supervisor.on_change(lambda state: changed.set())
    async with asyncio.timeout(READY_TIMEOUT_S):
        while supervisor.epoch < epoch or not supervisor.ready:
            await changed.wait()
            changed.clear()


def engine_of(config: EngineConfig) -> dict[str, psutil.Process]:
    """The engine's processes by what they are: API server, EngineCore, Worker."""
    found = {}
    for process in members(str(orjson.loads(config.record.read_bytes())["token"])):
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:  # a helper of its that has just ended
            continue
        if "vllm.entrypoints.openai.api_server" in line:
            found["server"] = process
        for name in ("EngineCore", "Worker"):
            if line and line[0].endswith(f"::{name}"):
                found[name] = process
    assert found.keys() == {"server", "EngineCore", "Worker"}
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended stays a zombie where nobody buries it, as in some containers."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
@pytest.mark.parametrize("victim", ["EngineCore", "Worker"])
async def test_kill_9_of_any_of_its_processes_brings_a_new_engine_and_leaves_nothing_of_the_old(
    supervisor: Supervisor, victim: str
) -> None:
    old, epoch = engine_of(supervisor.config), supervisor.epoch
    states: list[EngineState] = []
    supervisor.on_change(states.append)
    flying = asyncio.create_task(answer(supervisor, tokens=1500))
    await asyncio.sleep(1)
    old[victim].kill()
    with pytest.raises(HatrackError) as lost:
        await flying
    assert lost.value.status in (500, 502, 503)
    await ready(supervisor, epoch=epoch + 1)
    names = [state.name for state in states]
    assert names[-1] == "ready"
    assert "down" in names
    assert "starting" in names
    assert all(state.reason for state in states)
    assert {name for name, process in old.items() if lives(process)} == set()
    assert await answer(supervisor)


async def test_an_engine_that_is_busy_is_left_alone(supervisor: Supervisor) -> None:
    epoch = supervisor.epoch
    before = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < before + 1.25 * STALL_S:  # nobody calls saw_tokens here
        await asyncio.gather(*(answer(supervisor, tokens=200) for _ in range(4)))
    assert (supervisor.epoch, supervisor.ready) == (epoch, True)


async def test_a_frozen_engine_is_replaced_when_requests_wait_for_it(supervisor: Supervisor) -> None:
    old, epoch = engine_of(supervisor.config), supervisor.epoch
    flying = asyncio.create_task(answer(supervisor, tokens=1500))
    await asyncio.sleep(1)
    old["Worker"].suspend()
    with pytest.raises(HatrackError):
        await flying
    await ready(supervisor, epoch=epoch + 1)
    assert not lives(old["Worker"])
    assert await answer(supervisor)


async def test_a_stopped_supervisor_leaves_nothing(supervisor: Supervisor) -> None:
    old = engine_of(supervisor.config)
    await supervisor.stop()
    assert [process for process in old.values() if lives(process)] == []
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


async def test_what_a_killed_gateway_leaves_is_ended_by_the_next_start(base_dir: Path, tmp_path: Path) -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(tmp_path), str(base_dir), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    async with asyncio.timeout(READY_TIMEOUT_S):
        assert await owner.stdout.readline() == b"ready\n"
    config = EngineConfig.from_settings(Settings(home=tmp_path, base_model=str(base_dir), engine_device="cpu"))
    left = engine_of(config)
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()
    left["server"].kill()  # the worst case: the only process that still shows its environment is gone too
    await asyncio.sleep(0.5)
    ended = await asyncio.to_thread(end_leftovers, config.directory)
    assert {left["EngineCore"].pid, left["Worker"].pid} <= set(ended) | {
        process.pid for process in left.values() if not lives(process)
    }
    assert [process for process in left.values() if lives(process)] == []
    assert not config.record.exists()
