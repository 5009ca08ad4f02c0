"""What the load tests share: a gateway of their own with its engine, many adapters, and timed streams."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import ml_dtypes  # noqa: F401 (teaches numpy bfloat16)
from safetensors.numpy import load_file, save_file

from service.client import HatrackClient

KEY = "load-test-key-0123456789abcdef"
READY_S = 240.0
STOP_S = 60.0
VOCABULARY = (
    "river stone paper light window garden engine letter silver morning harbour winter market bridge "
    "copper forest candle mirror ladder pocket thunder velvet island marble orchard signal pepper lantern"
)


@dataclass(frozen=True)
class Running:
    """A started gateway."""

    home: Path
    port: int
    pid: int
    digests: dict[str, str] = field(default_factory=dict)
    """Of the adapters that were pushed, by name."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine_socket(self) -> str:
        return str(self.home / "engine" / "engine.sock")


def free_port() -> int:
    """A port of this machine that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def gateway(
    home: Path, base: Path, settings: Mapping[str, str], *arguments: str, checkout: Path | None = None
) -> Iterator[Running]:
    """Start `hatrack serve` with ``arguments`` on a free port, wait until it is ready, and stop it at the end.

    With ``checkout``, another version is started: from that directory, with the ``.venv`` there.
    """
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HATRACK_", "OPENAI_"))}
    ours = {"HATRACK_HOME": str(home), "HATRACK_BASE_MODEL": str(base), "HATRACK_PORT": str(port)}
    environment = plain | ours | {"HATRACK_ADMIN_KEY": KEY} | dict(settings)
    python = str(checkout / ".venv" / "bin" / "python") if checkout else sys.executable
    command = [python, "-m", "service.cli", "serve", *arguments]
    with (home / "gateway.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=checkout)
    running = Running(home, port, process.pid)
    try:
        with HatrackClient(base_url=running.url, api_key=KEY) as client:
            client.wait_ready(READY_S)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)


def make_adapters(source: Path, out: Path, count: int) -> list[Path]:
    """``count`` copies of a trained adapter, each with slightly other weights, so that each has a digest of its own."""
    tensors = load_file(source / "adapter_model.safetensors")
    made = []
    for number in range(count):
        directory = out / f"voice-{number:03d}"
        if not (directory / "adapter_config.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            scale = 1 - 0.01 * (number + 1)
            changed = {
                name: (tensor * scale).astype(tensor.dtype) if ".lora_B." in name else tensor
                for name, tensor in tensors.items()
            }
            save_file(changed, directory / "adapter_model.safetensors", metadata={"format": "pt"})
            (directory / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
        made.append(directory)
    return made


def push(running: Running, adapters: list[Path]) -> None:
    """Push adapter directories under their own names; one that is there already stays."""
    with HatrackClient(base_url=running.url, api_key=KEY) as client:
        for directory in adapters:
            running.digests[directory.name] = client.adapters.push(directory.name, directory)["digest"]


def prompt(words: int, rng: random.Random) -> str:
    """Random words (about 1.3 tokens each): no two prompts share a prefix that a cache could serve."""
    return " ".join(rng.choices(VOCABULARY.split(), k=words))


@dataclass(slots=True)
class Timing:
    """One streamed answer; times in seconds on `time.perf_counter`, 0 where it did not come so far."""

    model: str
    sent: float
    first: float = 0.0
    end: float = 0.0
    tokens: int = 0
    status: int = 0
    arrivals: list[float] = field(default_factory=list)
    """When each of its tokens came."""
    key: str = ""
    """The name of the key that asked, where several ask for one model."""

    @property
    def caller(self) -> str:
        """By whom or for what it was sent: its key where it has one of its own, otherwise its model."""
        return self.key or self.model

    @property
    def ttft_ms(self) -> float:
        return (self.first - self.sent) * 1000

    def within(self, began: float, ended: float) -> int:
        """Tokens that came in this time."""
        return sum(began <= at < ended for at in self.arrivals)


def session(*, unix: str | None = None) -> aiohttp.ClientSession:
    """A client without a limit of connections; with ``unix``, straight to the engine's socket."""
    connector: aiohttp.BaseConnector = (
        aiohttp.UnixConnector(unix, limit=0) if unix else aiohttp.TCPConnector(limit=0, force_close=False)
    )
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 18)


async def stream(
    client: aiohttp.ClientSession, url: str, timing: Timing, text: str, tokens: int, key: str = KEY
) -> None:
    """One streamed completion of exactly ``tokens`` tokens, noted in ``timing``; its events are counted, not parsed."""
    body = {"model": timing.model, "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True}
    headers = {"authorization": f"Bearer {key}"}
    async with client.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}, headers=headers) as response:
        timing.status = response.status
        if response.status != 200:
            await response.read()
            timing.end = time.perf_counter()
            return
        async for chunk in response.content.iter_any():
            events = chunk.count(b'"text"')
            if events:
                now = time.perf_counter()
                timing.first = timing.first or now
                timing.tokens += events
                timing.arrivals += [now] * events
    timing.end = time.perf_counter()


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed (nearest rank); 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def write_json(path: Path, value: object) -> None:
    """Write ``value`` readably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
