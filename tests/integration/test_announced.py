"""Agents that announce themselves, as processes: one is killed and another takes its place, elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.adapters import make_base
from tests.support.cluster import AGENT_KEY, FRONT_KEY, Load, Process, is_ready, until
from tests.support.gateway import ADMIN_KEY, TIMEOUT, Gateway, held_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ENTRIES = ("a", "b")
TOKENS = 24
SETTINGS = {
    "HATRACK_AGENT_KEY": AGENT_KEY,
    "HATRACK_FRONT_KEY": FRONT_KEY,
    "HATRACK_ENGINE_DEVICE": "cpu",
    # whoever waits behind others on a slow machine is none of these tests' questions
    "HATRACK_QUEUE_TIMEOUT_S": "1000000",
    "HATRACK_REQUEST_TIMEOUT_S": "1000000",
    "HATRACK_TRAINER": "off",
    "HATRACK_KNOWLEDGE": "false",
}


@dataclass
class Site:
    """A gateway whose engines are announced, a front of it, and agents on ports that nobody was told."""

    home: Path
    base_dir: Path
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        entry = f'base = "{self.base_dir}"\nagent = "announced"\n'
        (self.home / "engines.toml").write_text("".join(f'[[engine]]\nname = "{name}"\n{entry}' for name in ENTRIES))
        engines = {"HATRACK_BASE_MODEL": "", "HATRACK_ENGINES": str(self.home / "engines.toml")}
        self.gateway = Gateway(self.home, self.base_dir, settings={**SETTINGS, **engines})

    def start(self) -> None:
        self.gateway.start(wait=False)
        until(self.gateway.listens)
        with held_port() as held:
            port = int(held.getsockname()[1])
        environment = self.gateway.environment | {"HATRACK_FRONT_GATEWAY": self.gateway.url}
        environment |= {"HATRACK_PORT": str(port), "HATRACK_HOME": str(self.home / "front")}
        del environment["HATRACK_ENGINES"]
        self.front_process = Process(("front",), environment, self.home / "front.log", port)
        self.front_process.start()
        self.processes.append(self.front_process)

    def agent(self) -> Process:
        """Another agent, wherever there is a port."""
        environment = self.gateway.environment | {"HATRACK_BASE_MODEL": str(self.base_dir)}
        environment |= {"HATRACK_AGENT_ANNOUNCE": self.gateway.url}
        del environment["HATRACK_ENGINES"]
        made = Process(
            ("--host", "127.0.0.1", "--port", "0"),
            environment,
            self.home / f"agent-{len(self.processes)}.log",
            module="tests.support.stubbed_agent",
        )
        made.start()
        self.processes.append(made)
        return made

    def restart_gateway(self) -> None:
        """Start it again after it was killed, where it was: front and agents know that address."""
        gateway = self.gateway
        with (self.home / "gateway.log").open("ab") as log:
            command = [sys.executable, "-m", "service.cli", "serve"]
            gateway.process = subprocess.Popen(command, env=gateway.environment, stdout=log, stderr=log)
        until(gateway.listens)

    def places(self) -> dict[str, str]:
        """Where each engine's agent is, as the gateway says."""
        with self.gateway.http() as http:
            engines = http.get("/readyz").json()["engines"]
        return {each["name"]: each["reason"].rpartition("agent at ")[2] for each in engines}

    def stop(self) -> None:
        for process in self.processes:
            process.stop()
        self.gateway.stop()

    def ready(self) -> set[str]:
        with self.gateway.http() as http:
            return {each["name"] for each in http.get("/readyz").json()["engines"] if each["state"] == "ready"}

    @contextmanager
    def front(self, number: int, key: str = ADMIN_KEY) -> Iterator[httpx.Client]:
        """The gateway, and the front."""
        url = (self.gateway.url, f"http://127.0.0.1:{self.front_process.port}")[number]
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT) as http:
            yield http


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("announced")
    made = Site(home, make_base(home / "tiny"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_another_agent_elsewhere_takes_the_place_of_one_that_was_killed(site: Site) -> None:
    agents = [site.agent() for _ in ENTRIES]
    until(lambda: site.ready() == set(ENTRIES), agents[0])
    until(lambda: is_ready(site.front_process.port), site.front_process)
    with Load(site, ["tiny"] * 8, TOKENS) as load:
        until(lambda: len(load.outcomes) >= 16)
        before = time.monotonic()
        agents[0].kill()
        killed = time.monotonic()
        until(lambda: len(site.ready()) == 1)
        until(lambda: load.answered_since(killed) >= 16)  # by the other one
        agents.append(site.agent())
        until(lambda: site.ready() == set(ENTRIES), agents[-1])
        back = time.monotonic()
        until(lambda: load.answered_since(back) >= 32)
        outcomes = load.end()
    failed = [each for each in outcomes if each.error is not None]
    assert {each.error for each in failed} <= {"engine_cut"}
    beyond = [each for each in failed if each.began > killed or each.ended < before]
    assert beyond == [], f"it costs the streams that were open on it; killed at {before} to {killed}"


def test_an_agent_that_is_asked_to_stop_costs_nothing(site: Site) -> None:
    until(lambda: site.ready() == set(ENTRIES))
    leaving = site.processes[-1]
    with Load(site, ["tiny"] * 8, TOKENS) as load:
        until(lambda: len(load.outcomes) >= 16)
        leaving.stop()
        stopped = time.monotonic()
        until(lambda: len(site.ready()) == 1)
        until(lambda: load.answered_since(stopped) >= 16)
        outcomes = load.end()
    assert [each for each in outcomes if each.error is not None] == []


def test_a_gateway_that_was_killed_finds_them_again(site: Site) -> None:
    site.agent()
    until(lambda: site.ready() == set(ENTRIES))
    places = site.places()
    with Load(site, ["tiny"] * 4, TOKENS) as load:
        site.gateway.kill()
        site.restart_gateway()
        until(lambda: site.ready() == set(ENTRIES))
        outcomes = load.end()
    assert site.places() == places, "each has the name that it had"
    assert [each for each in outcomes if each.front == 1 and each.error is not None] == [], "the front goes on"
