"""A replica without Ray: what it makes of its child's state and end, and how many replicas there should be."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from service.cluster import replica as replica_module
from service.cluster.replica import BOUND_TO_PARENT, AgentFailed, AgentReplica, Arguments, engines_for
from service.config import Settings
from tests.support.waiting import wait_until

AGENT = """
import json, os, sys
from pathlib import Path
from aiohttp import web
file = Path(sys.argv[sys.argv.index("--address-file") + 1])
async def readyz(request):
    told = json.loads(Path(os.environ["TOLD"]).read_text())
    return web.json_response(told, status=200 if told["status"] == "ready" else 503)
async def main():
    app = web.Application()
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    file.write_text(f"http://127.0.0.1:{runner.addresses[0][1]}")
    return app
web.run_app(main(), path=os.environ["TOLD"] + ".sock", print=None)
"""
"""Says what the test has written down; a process in place of `hatrack agent`."""
START_S = 1234.0
READY = {
    "status": "ready",
    "engine": {"reason": "it answers"},
    "announced": {"engine": "a", "trouble": None, "unused": None},
}


@dataclass
class Site:
    """A replica's child and what it says."""

    told: Path
    replica: AgentReplica = field(init=False)

    def make(self, **more: Any) -> AgentReplica:
        environment = {"TOLD": str(self.told)}
        arguments = Arguments(command=(sys.executable, "-c", AGENT), environment=environment, **more)
        self.replica = AgentReplica(arguments, "127.0.0.1")
        return self.replica

    def say(self, **fields: Any) -> None:
        new = self.told.with_suffix(".new")
        new.write_text(json.dumps(READY | fields))
        new.replace(self.told)

    def child(self) -> psutil.Process:
        (process,) = [
            each
            for each in psutil.Process().children()
            if "--address-file" in each.cmdline() and AGENT in each.cmdline()
        ]
        return process


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path / "told")
    made.say()
    yield made
    await made.replica.stop()


async def test_it_starts_once_the_engine_answers_and_the_gateway_has_it(site: Site) -> None:
    site.say(status="starting", announced={"engine": None, "trouble": "not yet"})
    starting = asyncio.ensure_future(site.make().start())
    await asyncio.to_thread(wait_until, lambda: site.replica.status().get("status") == "starting", "it says so")
    site.say(announced={"engine": None, "trouble": "each engine of the base `tiny` has an agent", "unused": None})
    await asyncio.to_thread(wait_until, lambda: site.replica.status()["status"] == "ready", "it says so")
    assert not starting.done(), "the gateway has not taken it"
    other_base = {"engine": "a", "trouble": None, "unused": "the engine is incompatible: dtype differs"}
    site.say(announced=other_base)
    await asyncio.to_thread(wait_until, lambda: site.replica.status()["announced"] == other_base, "it says so")
    assert not starting.done(), "the gateway does not use it"
    site.say()
    await starting
    assert site.replica.status()["address"].startswith("http://127.0.0.1:")
    await site.replica.check_health()


@pytest.mark.parametrize(
    ("announced", "why"),
    [
        ({"engine": None, "trouble": "each engine of the base `tiny` has an agent"}, "each engine of the base `tiny`"),
        (
            {"engine": "a", "trouble": None, "unused": "the agent at http://10.0.0.5:1 cannot be reached"},
            "the agent at",
        ),
    ],
)
async def test_one_that_the_gateway_does_not_use_gives_up_and_says_why(
    site: Site, monkeypatch: pytest.MonkeyPatch, announced: dict[str, Any], why: str
) -> None:
    limits: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def kept(delay: float | None) -> asyncio.Timeout:
        made = timeout(delay)
        if delay == START_S:
            limits.append(made)
        return made

    monkeypatch.setattr(asyncio, "timeout", kept)
    site.say(announced=announced)
    starting = asyncio.ensure_future(site.make(start_s=START_S).start())
    await asyncio.to_thread(wait_until, lambda: site.replica.status().get("status") == "ready", "it says so")
    limits[0].reschedule(asyncio.get_running_loop().time())  # the time is up, however long the process took to start
    with pytest.raises(AgentFailed, match=rf"its engine is ready; the gateway: {why}"):
        await starting
    assert not psutil.Process().children() or all(AGENT not in each.cmdline() for each in psutil.Process().children())


def test_it_knows_how_long_its_agents_requests_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Arguments().drain_s == Settings().drain_s
    monkeypatch.setenv("HATRACK_DRAIN_S", "7")
    assert Arguments().drain_s == 7
    assert Arguments(environment={"HATRACK_DRAIN_S": "300"}).drain_s == 300
    assert Arguments(environment={"HATRACK_DRAIN_S": "long"}).drain_s == Settings.model_fields["drain_s"].default


async def test_an_agent_that_does_not_end_is_killed_after_its_requests_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "END_S", 0.1)
    monkeypatch.setenv("HATRACK_DRAIN_S", "0.1")
    await site.make().start()
    site.child().suspend()
    await site.replica.stop()
    process = site.replica._process
    assert process is not None
    assert process.returncode == -signal.SIGKILL


async def test_an_agent_that_announces_nothing_is_a_mistake(site: Site) -> None:
    site.say(announced=None)
    with pytest.raises(AgentFailed, match="HATRACK_AGENT_ANNOUNCE must be set"):
        await site.make().start()


async def test_an_agent_that_was_killed_is_unhealthy(site: Site) -> None:
    await site.make().start()
    site.child().kill()
    await asyncio.to_thread(wait_until, lambda: has_ended(site.replica), "its end is seen")
    with pytest.raises(AgentFailed, match="has ended with exit code -9"):
        await site.replica.check_health()
    assert await site.replica.load() == {}


def has_ended(replica: AgentReplica) -> bool:
    assert replica._process is not None
    return replica._process.returncode is not None


async def test_an_engine_that_is_away_is_left_to_the_agent_for_a_while(site: Site) -> None:
    await site.make(unready_s=1000).start()
    site.say(status="stalled", engine={"reason": "no token was generated"})
    await site.replica.check_health()
    await site.replica.stop()
    site.say()
    await site.make(unready_s=0.001).start()
    site.say(status="stalled", engine={"reason": "no token was generated"})
    with pytest.raises(AgentFailed, match=r"has been stalled for .*: no token was generated"):
        await site.replica.check_health()


async def test_a_frozen_agent_is_unhealthy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cluster.replica.ANSWER_S", 0.5)
    await site.make().start()
    site.child().suspend()
    with pytest.raises(AgentFailed, match="does not answer: TimeoutError"):
        await site.replica.check_health()
    site.child().resume()


def test_the_agent_ends_with_its_replica_however_that_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    parent = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid()), sys.executable, '-c', sys.argv[2]])\n"
        "time.sleep(3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, BOUND_TO_PARENT, child])
    wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the child runs")
    pid = int(pid_file.read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "it ends")


def test_arguments_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError):
        Arguments(command=())
    with pytest.raises(ValidationError):
        Arguments(environment={}, base="qwen")  # type: ignore[call-arg]


@dataclass
class Load:
    target_num_replicas: int
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None


def told(*replicas: tuple[float, float, float, float]) -> dict[str, dict[str, float]]:
    names = ("requests", "places", "adapters", "slots")
    return {name: {str(n): replica[place] for n, replica in enumerate(replicas)} for place, name in enumerate(names)}


@pytest.mark.parametrize(
    ("load", "engines"),
    [
        (Load(3, None), 3.0),
        (Load(3, {}), 3.0),
        (Load(1, told((0, 60, 0, 8))), 0.0),
        (Load(1, told((24, 60, 2, 8))), 0.5),
        (Load(1, told((96, 60, 2, 8))), 2.0),  # as many wait as are answered
        (Load(2, told((48, 60, 2, 8), (0, 60, 1, 8))), 1.0),
        (Load(1, told((10, 60, 16, 8))), 2.5),  # adapters wait for slots, and few requests
    ],
)
def test_how_many_engines_the_queue_and_the_slots_want(load: Load, engines: float) -> None:
    assert engines_for(load)[0] == pytest.approx(engines)
