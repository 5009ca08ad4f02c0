"""A gateway, two agents with a real engine each, and two fronts, every one a process of its own; and load on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
import psutil

from service.cli.peers import readiness
from tests.support.gateway import ADMIN_KEY, TIMEOUT, Gateway, held_port

AGENT_KEY = "the-agents-secret-of-these-tests"
FRONT_KEY = "the-fronts-secret-of-these-tests"
READY_S = 900.0
ENGINES = ("a", "b")
OF_GATEWAYS = frozenset({"HATRACK_ENGINES", "HATRACK_DATABASE_URL", "HATRACK_STORE_URL"})
"""Settings that a front does without."""


@dataclass
class Process:
    """A module that runs until it is ended; ``port`` is where it listens, 0 for a socket."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    port: int = 0
    module: str = "service.cli"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; a fixed port stays the same over restarts."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments], env=self.environment, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to it alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, as an operator would; SIGKILL if that does not help."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


@dataclass
class ClusterOfProcesses:
    """All of them, over one home."""

    home: Path
    base_dir: Path
    settings: dict[str, str]
    is_real: bool
    """Real engines; else processes that speak as they do."""
    stubs: dict[str, Process] = field(default_factory=dict)
    agents: dict[str, Process] = field(default_factory=dict)
    fronts: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        entry = '[[engine]]\nname = "{name}"\nbase = "{base}"\nagent = "unix:{socket}"\n'
        entries = (entry.format(name=name, base=self.base_dir, socket=self.socket(name)) for name in ENGINES)
        (self.home / "engines.toml").write_text("\n".join(entries))
        common = {"HATRACK_AGENT_KEY": AGENT_KEY, "HATRACK_FRONT_KEY": FRONT_KEY, **self.settings}
        engines = {"HATRACK_BASE_MODEL": "", "HATRACK_ENGINES": str(self.home / "engines.toml")}
        self.gateway = Gateway(self.home, self.base_dir, settings=common | engines)
        for name in ENGINES:
            command, environment = ("agent", "--name", name, "--uds", str(self.socket(name))), self.gateway.environment
            if "HATRACK_STORE_URL" in self.settings:  # its copies are no other process's
                environment |= {"HATRACK_HOME": str(self.home / f"agent-{name}")}
                (self.home / f"agent-{name}").mkdir()
            if not self.is_real:
                engine = {"HATRACK_BASE_MODEL": str(self.base_dir), "HATRACK_ENGINE_DEVICE": "cpu"}
                environment |= engine | {"HATRACK_ENGINE_URL": f"unix:{self.socket(f'engine-{name}')}"}
                del environment["HATRACK_ENGINES"]
                self.stubs[name] = Process(
                    (str(self.socket(f"engine-{name}")),),
                    environment,
                    self.home / f"engine-{name}.log",
                    module="tests.support.stub_engine",
                )
            self.agents[name] = Process(command, environment, self.home / f"agent-{name}.log")

    def socket(self, name: str) -> Path:
        return self.home / f"{name}.sock"

    def start(self) -> None:
        """Start everything, and wait until every part says that it is ready."""
        for process in [*self.stubs.values(), *self.agents.values()]:
            process.start()
        for name in ENGINES:
            self.until_agent_ready(name)
        self.gateway.start(wait=False)
        self.until_gateway_ready()
        for number in range(2):
            self.fronts.append(front_of(self.gateway, number))
            self.fronts[number].start()
        for front in self.fronts:
            until(lambda front=front: is_ready(front.port), front)  # type: ignore[misc]

    def stop(self) -> None:
        """Stop everything; what was killed leaves its engine's processes to us."""
        for process in [*self.fronts, *self.agents.values(), *self.stubs.values()]:
            process.stop()
        with suppress(AssertionError):
            self.gateway.stop()
        for left in self.gateway.engine_processes():
            with suppress(psutil.NoSuchProcess):
                left.kill()

    def restart_gateway(self) -> None:
        """Start the gateway again after it was killed, where it was: its fronts know that address."""
        gateway = self.gateway
        with (gateway.home / "gateway.log").open("ab") as log:
            gateway.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"], env=gateway.environment, stdout=log, stderr=log
            )
        self.until_gateway_ready()

    def until_gateway_ready(self) -> None:
        def is_up() -> bool:
            assert self.gateway.process is not None
            assert self.gateway.process.poll() is None, self.gateway.log()
            return is_ready(self.gateway.port)

        until(is_up)

    def until_agent_ready(self, name: str) -> None:
        def is_up() -> bool:
            with suppress(OSError):
                return bool(readiness(f"unix:{self.socket(name)}")["status"] == "ready")
            return False

        until(is_up, self.agents[name])

    def engines(self) -> dict[str, str]:
        """Each engine's state, as the gateway has it."""
        with self.gateway.http() as http:
            return {each["name"]: each["state"] for each in http.get("/readyz").json()["engines"]}

    @contextmanager
    def front(self, number: int, key: str = ADMIN_KEY) -> Iterator[httpx.Client]:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{self.fronts[number].port}",
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT,
        ) as http:
            yield http


def front_of(gateway: Gateway, number: int) -> Process:
    """A front of a gateway that listens; it knows nothing but where that is, and the secrets that they share."""
    with held_port() as held:
        port = int(held.getsockname()[1])
    home = gateway.home / f"front-{number}"
    own = {"HATRACK_FRONT_GATEWAY": gateway.url, "HATRACK_PORT": str(port), "HATRACK_HOME": str(home)}
    environment = {name: value for name, value in gateway.environment.items() if name not in OF_GATEWAYS}
    return Process(("front",), environment | own, gateway.home / f"front-{number}.log", port)


def is_ready(port: int) -> bool:
    """Whether what listens there says that it is ready."""
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    return False


def until(true: Callable[[], bool], process: Process | None = None, limit_s: float = READY_S) -> float:
    """Wait until it is true; returns how long that took, s."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + limit_s, "" if process is None else process.text
        if process is not None and process.process is not None and process.process.poll() is not None:
            raise AssertionError(process.text)
        time.sleep(0.05)
    return time.monotonic() - began


def kill_at_once(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL to all of them, none of which sees another one end before."""
    for signal_ in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal_)


@dataclass(frozen=True)
class Outcome:
    """One streamed request: when it began and ended (monotonic seconds), which front it asked, and how it ended.

    ``error`` is None for a whole answer, else its code; ``transport``: the front's connection was lost.
    """

    began: float
    ended: float
    front: int
    model: str
    error: str | None


class HasFronts(Protocol):
    """What can be asked by the number of a front; a gateway without fronts is each of them."""

    def front(self, number: int, key: str = ADMIN_KEY) -> AbstractContextManager[httpx.Client]:
        """A client of it."""


class Load:
    """Streams without pause, one after another for each model and front, until it is ended."""

    def __init__(self, cluster: HasFronts, models: Sequence[str], tokens: int) -> None:
        self._cluster = cluster
        self._tokens = tokens
        self._ends = threading.Event()
        self.outcomes: list[Outcome] = []
        self._threads = [
            threading.Thread(target=self._stream, args=(number % 2, model)) for number, model in enumerate(models)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> list[Outcome]:
        """No more requests; those that are open end as they do."""
        self._ends.set()
        for thread in self._threads:
            thread.join()
        return list(self.outcomes)

    def answered_since(self, moment: float) -> int:
        """Whole answers to requests that began after a moment."""
        return sum(each.began > moment and each.error is None for each in list(self.outcomes))

    def _stream(self, front: int, model: str) -> None:
        while not self._ends.is_set():
            began = time.monotonic()
            error = self._ask(front, model)
            self.outcomes.append(Outcome(began, time.monotonic(), front, model, error))
            if error is not None:
                time.sleep(0.1)

    def _ask(self, front: int, model: str) -> str | None:
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": self._tokens, "stream": True}
        body |= {"ignore_eos": True, "temperature": 0}
        last = ""
        try:
            with self._cluster.front(front) as http, http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    return _code(answer.status_code, answer.read())
                for line in answer.iter_lines():
                    last = line or last
        except httpx.TransportError:
            return "transport"
        if last == "data: [DONE]":
            return None
        return str(json.loads(last.removeprefix("data: ")).get("error", {}).get("code", "unfinished"))


def _code(status: int, body: bytes) -> str:
    """The code of an error; its status where it is none of Hatrack's."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError):
        return f"status {status}"
