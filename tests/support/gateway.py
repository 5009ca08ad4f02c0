"""A real gateway with its real engine, as a process of its own: what `hatrack serve` starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.system import plain_environment

ADMIN_KEY = "test-admin-key-0123456789abcdef"
READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 300.0
TIMEOUT = httpx.Timeout(180.0, connect=30.0)
REPEATS = 3
SCRAPE_FRESH_S = 1.05
"""How old a scrape may be that the gateway answers once more, and a little."""


def held_port() -> socket.socket:
    """A free port, bound and not listened on: while the socket is open, only a server that binds the same address, as
    the gateway does, gets the port."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def upload_evaluation_file(client: httpx.Client, name: str, content: bytes) -> str:
    """POST /v1/files with the purpose `evals`; the id of the new file."""
    answer = client.post("/v1/files", data={"purpose": "evals"}, files={"file": (name, content)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


@dataclass
class Gateway:
    """A gateway of the tests: its home and URL, how to start, stop or kill it, and how to ask it."""

    home: Path
    base_dir: Path
    settings: dict[str, str]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    sessions: set[int] = field(default_factory=set)
    arguments: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return ADMIN_KEY

    @property
    def environment(self) -> dict[str, str]:
        plain = plain_environment()
        return plain | {
            "HATRACK_HOME": str(self.home),
            "HATRACK_BASE_MODEL": str(self.base_dir),
            "HATRACK_PORT": str(self.port),
            "HATRACK_ADMIN_KEY": ADMIN_KEY,
            "HATRACK_URL": self.url,
            "HATRACK_KEY": ADMIN_KEY,
            # an old home's versions are due on this engine: a revalidation would take the engine from what is tested
            "HATRACK_REVALIDATE_EVERY_HOURS": "0",
            "HATRACK_DRAIN_S": "20",  # whoever holds a stream open while its gateway stops is not waited for so long
            **self.settings,
        }

    def start(self, *, wait: bool = True, prepare: Callable[[], object] = lambda: None) -> None:
        """Start `hatrack serve`; with `wait`, until it is ready. `prepare` is called once its port is known."""
        self.home.mkdir(parents=True, exist_ok=True)
        # the gateway needs seconds until it listens: meanwhile it inherits what keeps its port from everybody else
        with held_port() as held, (self.home / "gateway.log").open("ab") as log:
            self.port = int(held.getsockname()[1])
            prepare()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve", *self.arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
                pass_fds=(held.fileno(),),
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until /readyz says ready."""
        assert self.process is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the gateway ended with {self.process.returncode}:\n{self.log()}")
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    assert self.engine_processes()
                    return
            time.sleep(0.25)
        raise RuntimeError(f"the gateway was not ready after {timeout_s} s:\n{self.log()}")

    def log(self) -> str:
        """The end of the gateway's and of the engine's log."""
        logs = (self.home / "gateway.log", self.home / "engine" / "engine.log")
        return "\n----\n".join(path.read_text(errors="replace")[-4000:] for path in logs if path.exists())

    def stop(self) -> None:
        """SIGTERM, as an operator would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL to the gateway alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def engine_processes(self) -> list[psutil.Process]:
        """Every living process of the engines that this gateway has started so far.

        A child of vLLM that sets its title loses its environment with it, so a process also counts by its session,
        once the session's leader has been seen.
        """
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                session = os.getsid(process.pid)
                if process.environ().get("HATRACK_PLUGIN_STORE") == str(self.home / "adapters"):
                    self.sessions.add(session)
                if session in self.sessions:
                    processes.append(process)
        return processes

    # its engine, without the gateway in between

    def ask_engine(self, path: str) -> httpx.Response:
        """GET straight from the engine's socket."""
        transport = httpx.HTTPTransport(uds=str(self.home / "engine" / "engine.sock"))
        with httpx.Client(transport=transport, base_url="http://engine", timeout=TIMEOUT) as engine:
            return engine.get(path)

    def loaded(self) -> set[str]:
        """The digests of the adapters in the engine's memory."""
        return set(self.ask_engine("/hatrack/plugin?loaded=1").json()["loaded"])

    def running_requests(self) -> float:
        """The number of requests that the engine is decoding."""
        lines = self.ask_engine("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running{"))

    def engine_server(self) -> psutil.Process:
        """The API server of the engine on record."""
        return psutil.Process(json.loads((self.home / "engine" / "engine.json").read_bytes())["pid"])

    # its API

    def metrics(self) -> str:
        """The text of a scrape that is made now, with the admin key, which names projects and adapters."""
        time.sleep(SCRAPE_FRESH_S)
        with self.http() as http:
            return http.get("/metrics").raise_for_status().text

    def http(self, **options: Any) -> httpx.Client:
        """A client with the admin key."""
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=TIMEOUT, **options
        )

    def listens(self) -> bool:
        """Whether the gateway accepts requests, with or without an engine."""
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        return False

    def base_name(self) -> str:
        """The name that the base model is served by."""
        with self.http() as client:
            return str(client.get("/v1/models").json()["data"][0]["id"])

    def create_key(self, **body: Any) -> dict[str, Any]:
        """POST /v1/keys with the admin key; the answer, which holds the new key."""
        with self.http() as client:
            answer = client.post("/v1/keys", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def push(self, name: str, directory: Path, *, wait: bool = True, **fields: str) -> httpx.Response:
        """POST /v1/adapters with a PEFT output directory's two files."""
        with self.http() as client, (directory / "adapter_model.safetensors").open("rb") as weights:
            return client.post(
                "/v1/adapters",
                params={} if wait else {"wait": "false"},
                data={"name": name, **fields},
                files={
                    "config": ("adapter_config.json", (directory / "adapter_config.json").read_bytes()),
                    "weights": ("adapter_model.safetensors", weights),
                },
            )

    def chat(self, model: str, text: str, **more: Any) -> httpx.Response:
        """One chat completion, greedy and short unless said otherwise."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 40,
            "temperature": 0,
            **more,
        }
        with self.http() as client:
            return client.post("/v1/chat/completions", json=body)

    def answer(self, model: str, text: str, **more: Any) -> str:
        """The answer's text; fails where there is none."""
        response = self.chat(model, text, **more)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def answer_samples(self, model: str, text: str, **more: Any) -> set[str]:
        """A model's answers when it is asked alone a few times. Mostly one text; but a canary may share a step with an
        answer, and the prefix cache was computed in other pieces: the sums then run in another order."""
        return {self.answer(model, text, **more) for _ in range(REPEATS)}

    def still_answers(self, samples: set[str], model: str, text: str, **more: Any) -> bool:
        """Whether a model gives one of its earlier answers; asked again where it does not, for the same reasons."""
        return any(self.answer(model, text, **more) in samples for _ in range(REPEATS))

    def answers(self, questions: Sequence[tuple[str, str]], **more: Any) -> list[str]:
        """The answers' texts to (model, text), all asked at once."""
        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(lambda pair: self.answer(*pair, **more), questions))
