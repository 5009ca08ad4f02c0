"""Ray on loopback with agents as replicas of Ray Serve, and a real gateway; the engines are stubs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from service.cli.cluster import head_command
from tests.conftest import REPO
from tests.support.adapters import make_base
from tests.support.cluster import AGENT_KEY, until
from tests.support.gateway import ADMIN_KEY, TIMEOUT, Gateway, held_port
from tests.support.system import plain_environment

PYTHON = REPO / ".venv-cluster" / "bin" / "python"
"""Of the environment with Ray; the agents run in that of the tests."""
TOKEN = "the-token-of-ray-in-these-tests"
NEEDS_RAY = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not PYTHON.exists(), reason="needs an environment with Ray: make test-cluster"),
]
"""Marks of every module here."""
ENTRIES = ("a", "b")
STARTS = 5
APPLICATION = "tiny"
BASE_NAME = "tiny"
SETTINGS = {
    "HATRACK_ENGINE_SLOTS": "4",
    "HATRACK_ENGINE_RESIDENT": "8",
    "HATRACK_ENGINE_DEVICE": "cpu",
    # whoever waits behind others on a slow machine is none of these tests' questions
    "HATRACK_QUEUE_TIMEOUT_S": "1000000",
    "HATRACK_REQUEST_TIMEOUT_S": "1000000",
    "HATRACK_TRAINER": "off",
    "HATRACK_KNOWLEDGE": "false",
}


@dataclass
class RayCluster:
    """A Ray head, a gateway over `home`, and the Serve config of its agents."""

    home: Path
    base_dir: Path
    temporary: Path
    """Ray's own files; a short path, for its sockets."""
    nodes: tuple[str, ...] = ()
    """Addresses of nodes beside the head, which then runs no agents; none: the head runs them."""
    redis: str | None = None
    """Address of the Redis that keeps what GCS knows; None: it is in the head's memory."""
    ports: dict[str, int] = field(default_factory=dict)
    ray: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """The head, and the nodes in their order."""

    def __post_init__(self) -> None:
        entry = f'base = "{self.base_dir}"\nagent = "announced"\n'
        (self.home / "engines.toml").write_text("".join(f'[[engine]]\nname = "{name}"\n{entry}' for name in ENTRIES))
        engines = {"HATRACK_BASE_MODEL": "", "HATRACK_ENGINES": str(self.home / "engines.toml")}
        self.gateway = Gateway(
            self.home, self.base_dir, settings={"HATRACK_AGENT_KEY": AGENT_KEY, **SETTINGS, **engines}
        )
        for name in ("ray", "dashboard"):
            with held_port() as held:
                self.ports[name] = int(held.getsockname()[1])

    # processes

    def start(self) -> None:
        """Start gateway and Ray; no agents yet."""
        self.gateway.start(wait=False)
        until(self.gateway.listens)
        self._start_head()
        for address in self.nodes:
            self._start_node(address)

    def _start_head(self) -> None:
        arguments, variables = head_command(self.head, self.dashboard)
        arguments += ["--block", "--port", str(self.ports["ray"]), "--temp-dir", str(self.temporary)]
        if self.redis is not None:
            variables |= {"RAY_REDIS_ADDRESS": self.redis}
        self._start_ray(*arguments, "--num-cpus", "0" if self.nodes else "4", **variables)
        until(self.is_ray_up)

    def _start_node(self, address: str) -> None:
        """One after another, and again where Ray gives up after its 30 s on a busy machine."""
        there = ("--address", f"{self.head}:{self.ports['ray']}", "--node-ip-address", address)
        for _ in range(STARTS):
            variables = {"RAY_AUTH_MODE": "token", **self.node_environment(address)}
            process = self._start_ray("start", *there, "--block", "--num-cpus", "1", **variables)
            until(lambda: process.poll() is not None or address in self.living_nodes())  # noqa: B023
            if process.poll() is None:
                return
            self.ray.remove(process)
        raise AssertionError((self.home / "ray.log").read_text(errors="replace")[-4000:])

    def node_environment(self, _address: str) -> dict[str, str]:
        """What a node hands on to its agents."""
        return {}

    @property
    def agent_environment(self) -> dict[str, str]:
        """Settings of the agents beside the engine's."""
        return {"HATRACK_HOME": str(self.home)}

    def _start_ray(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        with (self.home / "ray.log").open("ab") as log:
            process = subprocess.Popen(
                [str(PYTHON), "-m", "ray.scripts.scripts", *arguments, "--object-store-memory", str(80 * 2**20)],
                env=self.environment | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.ray.append(process)
        return process

    def is_ray_up(self) -> bool:
        assert self.ray[0].poll() is None, (self.home / "ray.log").read_text(errors="replace")[-4000:]
        with suppress(httpx.TransportError):
            return self.ask_ray("/api/version").status_code == 200
        return False

    def ask_ray(self, path: str) -> httpx.Response:
        """GET from Ray's dashboard."""
        return httpx.get(f"{self.dashboard}{path}", headers={"authorization": f"Bearer {TOKEN}"}, timeout=TIMEOUT)

    def living_nodes(self) -> set[str]:
        """The addresses of Ray's nodes."""
        told = self.ask_ray("/api/v0/nodes").json()["data"]["result"]["result"]
        return {node["node_ip"] for node in told if node["state"] == "ALIVE"}

    def stop(self) -> None:
        """End the agents, Ray and the gateway; nothing of them is left."""
        own = self.ray_processes()
        for process in reversed(self.ray):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
        for process in own:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(own, timeout=60)
        self.gateway.stop()

    def ray_processes(self) -> list[psutil.Process]:
        """Ray's processes and all that they have started, agents too."""
        return [each for started in self.ray for each in family(started.pid)]

    def freeze_node(self, address: str) -> list[psutil.Process]:
        """SIGSTOP to all of a node at once; returns its processes."""
        return freeze(self.ray[1 + self.nodes.index(address)])

    def kill_node(self, address: str) -> None:
        """SIGKILL to all of a node at once, as if its machine had lost its power."""
        kill_all(self.freeze_node(address))

    def kill_head(self) -> None:
        """SIGKILL to all of the head at once: GCS, Serve's controller, the dashboard."""
        kill_all(freeze(self.ray[0]))
        self.ray[0].wait()

    def replace_head(self) -> None:
        """Start a head where one has ended, at the same address."""
        del self.ray[0]
        # on one machine Ray takes the other nodes' processes for a head that still runs, where it finds this file
        (self.temporary / "ray_current_cluster").unlink(missing_ok=True)
        self._start_head()
        self.ray.insert(0, self.ray.pop())

    def replace_node(self, address: str) -> None:
        """Start a node where one has ended."""
        place = 1 + self.nodes.index(address)
        self.ray[place].wait()
        del self.ray[place]
        self._start_node(address)
        self.ray.insert(place, self.ray.pop())

    @property
    def head(self) -> str:
        """Its address; with other nodes one that Ray does not take for all nodes' own."""
        return "127.0.0.2" if self.nodes else "127.0.0.1"

    @property
    def dashboard(self) -> str:
        return f"http://{self.head}:{self.ports['dashboard']}"

    @property
    def environment(self) -> dict[str, str]:
        """Of Ray's processes and the command."""
        plain = {name: value for name, value in plain_environment().items() if not name.startswith("RAY_")}
        # Ray's minute may not be enough for another head on a busy machine
        patience = {} if self.redis is None else {"RAY_gcs_rpc_server_reconnect_timeout_s": "1000"}
        return plain | {
            **patience,
            "HATRACK_AGENT_KEY": AGENT_KEY,
            "HATRACK_DRAIN_S": "20",
            "HATRACK_URL": self.gateway.url,
            "HATRACK_KEY": ADMIN_KEY,
            "PYTHONPATH": str(REPO),
            "RAY_AUTH_TOKEN": TOKEN,
        }

    # the command

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `hatrack cluster …` in the environment with Ray."""
        done = subprocess.run(
            [str(PYTHON), "-m", "service.cli", "cluster", *arguments, "--dashboard", self.dashboard],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=3600,
            cwd=self.home,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done

    def up(
        self,
        *,
        autoscaling: dict[str, Any] | None = None,
        start_s: float = 1200,
        check: bool = True,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Deploy the agents, or others in their place; returns once all are in use, or that has failed."""
        number = {"num_replicas": len(ENTRIES)} if autoscaling is None else {"autoscaling_config": autoscaling}
        config = {
            "proxy_location": "Disabled",
            "applications": [
                {
                    "name": APPLICATION,
                    "route_prefix": None,
                    "import_path": "service.cluster.application:agents",
                    "args": {
                        "command": [sys.executable, "-m", "tests.support.stubbed_agent"],
                        "start_s": start_s,
                        "environment": SETTINGS
                        | {"HATRACK_BASE_MODEL": str(self.base_dir), "HATRACK_AGENT_ANNOUNCE": self.gateway.url}
                        | self.agent_environment
                        | environment,
                    },
                    "deployments": [{"name": "agent", "ray_actor_options": {"num_cpus": 0.5}, **number}],
                }
            ],
        }
        path = self.home / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        return self.command("up", str(path), check=check)

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.command("status", "--json", check=False).stdout)
        return told

    def replicas(self) -> list[dict[str, Any]]:
        """As Serve has them."""
        told = self.ask_ray("/api/serve/applications/").raise_for_status().json()
        deployments = told["applications"].get(APPLICATION, {}).get("deployments", {})
        return [replica for deployment in deployments.values() for replica in deployment["replicas"]]

    def is_settled(self) -> bool:
        """Whether Serve has as many replicas as there are entries, all of them run, and the gateway uses them."""
        with suppress(httpx.HTTPError, KeyError):
            states = [replica["state"] for replica in self.replicas()]
            return states == ["RUNNING"] * len(ENTRIES) and self.ready() == set(ENTRIES)
        return False

    def agents(self) -> list[psutil.Process]:
        """The agents' processes."""
        return [each for each in self.ray_processes() if is_agent(each)]

    def engines(self) -> dict[str, dict[str, Any]]:
        """Each engine, as the gateway has it."""
        with self.gateway.http() as http:
            return {each["name"]: each for each in http.get("/readyz").json()["engines"]}

    def ready(self) -> set[str]:
        return {name for name, each in self.engines().items() if each["state"] == "ready"}

    @contextmanager
    def front(self, number: int, key: str = ADMIN_KEY) -> Iterator[httpx.Client]:
        """A client of the gateway, for `Load`."""
        with httpx.Client(
            base_url=self.gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT
        ) as http:
            yield http

    def logs(self) -> str:
        """The ends of what Ray's processes have written."""
        folder = self.temporary / "session_latest" / "logs"
        paths = [*(folder / "serve").glob("*.log"), *folder.glob("worker-*.err")]
        return "".join(f"\n---- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)


@contextmanager
def running(home: Path, *nodes: str, redis: str | None = None) -> Iterator[RayCluster]:
    """A cluster over `home` with its agents in use; ``nodes`` and ``redis`` are those of the class."""
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    made = RayCluster(home, make_base(home / BASE_NAME), temporary, nodes, redis)
    try:
        made.start()
        made.up()
        yield made
    finally:
        made.stop()
        shutil.rmtree(temporary, ignore_errors=True)


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it; none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def is_agent(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "tests.support.stubbed_agent" in process.cmdline()
    return False


def kill(process: psutil.Process) -> None:
    """SIGKILL to it alone."""
    os.kill(process.pid, signal.SIGKILL)


def freeze(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """SIGSTOP to a process and all below it; returns them."""
    own = family(started.pid)
    for process in own:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    return own


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL to each of them."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
