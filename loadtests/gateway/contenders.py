"""Who is measured: how each gateway is started in front of the fake engine, on a core of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from loadtests.gateway.clock import cpu_s, family
from loadtests.gateway.peers import ENGINE_MODEL, MODEL

REPO = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
QUIET_TIMEOUT_S = 20.0
LITELLM_KEY = "sk-of-the-benchmark"


def free_port() -> int:
    """A port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Failed(Exception):
    """A process of the benchmark did not come up; the message says which, with the end of its log."""


@dataclass
class Server:
    """A process that listens on a port, pinned to a core, with its log in a file."""

    name: str
    command: Sequence[str]
    port: int
    core: int
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = REPO
    ready_path: str = "/health"
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers below 500 at `ready_path`. Raises Failed."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HATRACK_", "OPENAI_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(self.core), *self.command],
                env={**clean, "NO_PROXY": "*", "no_proxy": "*", "PYTHONPATH": str(REPO), **self.environment},
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}:\n{self._tail()}")
            with suppress(httpx.HTTPError):
                if httpx.get(self.url + self.ready_path, timeout=5, trust_env=False).status_code < 500:
                    return
            time.sleep(0.2)
        raise Failed(f"{self.name} was not ready after {START_TIMEOUT_S:g} s:\n{self._tail()}")

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def pause(self) -> None:
        """Stop its clock: who is not measured must not take time from who is."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a pause."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in family(self.pid):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def wait_quiet(self) -> None:
        """Return when it has done with what it had: under 3% of a core for a fifth of a second."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        while time.monotonic() < deadline:
            before = cpu_s(self.pid)
            time.sleep(0.2)
            if cpu_s(self.pid) - before < 0.006:
                return

    def stop(self) -> None:
        """End it and its children."""
        if self.process is None:
            return
        self.go_on()
        processes = family(self.pid)
        self.process.terminate()
        _, alive = psutil.wait_procs(processes, STOP_TIMEOUT_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(STOP_TIMEOUT_S)


@dataclass
class Contender:
    """A gateway in the benchmark."""

    name: str
    what: str
    """One line for the report."""
    server: Server
    model: str = MODEL
    key: str = "none"
    prepare: Callable[[Contender], None] = lambda contender: None
    """Called once it has started: makes keys and adapters."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the contenders run."""

    work: Path
    """A directory for logs and state."""
    upstream: str
    """The fake engine's URL."""
    core: int

    def server(self, name: str, command: Sequence[str], port: int, **more: object) -> Server:
        """A server of this place."""
        return Server(name, command, port, self.core, self.work / f"{name}.log", **more)  # type: ignore[arg-type]


def bare_relay(place: Place) -> Contender:
    """The yardstick."""
    return _module(place, "bare relay", "bare_relay", "ASGI and aiohttp on uvicorn; renames the model, nothing else")


def fastapi_httpx(place: Place) -> Contender:
    """The gateway that one writes first."""
    return _module(place, "FastAPI + httpx", "fastapi_httpx", "one route, the body as a dict, httpx to the engine")


def _module(place: Place, name: str, module: str, what: str) -> Contender:
    port = free_port()
    command = [sys.executable, "-m", f"loadtests.gateway.peers.{module}", "--port", str(port)]
    return Contender(name, what, place.server(module, [*command, "--upstream", place.upstream], port))


def litellm(place: Place, peers: Path) -> Contender | None:
    """LiteLLM's proxy from its own environment; None where it is not installed there."""
    program = peers / "litellm" / "bin" / "litellm"
    if not program.exists():
        return None
    port = free_port()
    config = place.work / "litellm.yaml"
    config.write_text(
        f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/{ENGINE_MODEL}\n"
        f"    api_base: {place.upstream}/v1\n    api_key: none\n"
        f"general_settings:\n  master_key: {LITELLM_KEY}\n"
    )
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    server = place.server(
        "litellm",
        command,
        port,
        # as its documentation has it for production: no debug lines, no look-ups of its own at start
        environment={"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        directory=place.work,
        ready_path="/health/liveliness",
    )
    what = f"LiteLLM's proxy {_version(peers / 'litellm', 'litellm')}, one worker, master key, no database"
    return Contender("LiteLLM proxy", what, server, key=LITELLM_KEY)


def vllm_router(place: Place, peers: Path) -> Contender | None:
    """vLLM's router (Rust) from its own environment; None where it is not installed there."""
    program = peers / "vllm-router" / "bin" / "vllm-router"
    if not program.exists():
        return None
    port, metrics = free_port(), free_port()
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", place.upstream]
    command += ["--policy", "round_robin", "--log-level", "warning", "--prometheus-port", str(metrics)]
    what = f"vllm-router {_version(peers / 'vllm-router', 'vllm-router')} (Rust), round robin over one engine, no key"
    # it renames nothing: it is asked for the engine's own name
    return Contender("vllm-router", what, place.server("vllm_router", command, port), model=ENGINE_MODEL)


def _version(environment: Path, distribution: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    done = subprocess.run([environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
