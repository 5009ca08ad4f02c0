"""How long `hatrack serve` takes until it is ready, with few adapters and with many; its engine runs already.

    .venv/bin/python -m loadtests.start --adapters 1000

The engine is the gateway benchmark's fake one, the base and the adapters have a few kilobytes each, and every adapter
is pushed and proven through the API. Then gateways are started with each home in turn; the time counts from the
process's start to the first 200 of `/readyz`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.progress import track

from loadtests.gateway.contenders import Contender, Place
from loadtests.gateway.hatrack import hatrack
from loadtests.gateway.run import start_upstream
from tests.support.adapters import describe_base, make_adapter

FEW = 1
POLL_S = 0.01
READY_S = 300.0


@dataclass
class Home:
    """A gateway's home with some adapters, and what starts it."""

    adapters: int
    contender: Contender
    seconds: list[float]


def make_home(work: Path, adapters: int, stack: ExitStack) -> Home:
    """A home whose gateway has been stopped again, with so many adapters that are live."""
    work.mkdir()
    upstream = start_upstream(work, stack)
    contender = hatrack(Place(work, upstream.url, 0))
    stack.callback(contender.server.stop)
    contender.server.start()
    contender.prepare(contender)  # one adapter
    base = describe_base(work / "base")
    headers = {"authorization": f"Bearer {contender.key}"}
    with httpx.Client(base_url=contender.server.url, headers=headers, timeout=60, trust_env=False) as client:
        for number in track(range(1, adapters), f"pushing {adapters:,} adapters"):
            files = make_adapter(work / "made", base, seed=number)
            uploaded = {
                "config": ("adapter_config.json", files.config),
                "weights": ("adapter_model.safetensors", files.weights),
            }
            answer = client.post("/v1/adapters", data={"name": f"voice-{number}"}, files=uploaded)
            if answer.status_code != 201 or answer.json()["state"] != "ready":
                raise SystemExit(f"adapter {number} was not taken: {answer.text[:300]}")
    contender.server.stop()
    return Home(adapters, contender, [])


def start(home: Home) -> float:
    """Start the home's gateway, stop it again; returns the seconds until it was ready."""
    server = home.contender.server
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ".", **server.environment}
    began = time.perf_counter()
    with server.log.open("ab") as log:
        process = subprocess.Popen(server.command, env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"{server.url}/readyz").status_code == 200:
                        return time.perf_counter() - began
                if process.poll() is not None or time.perf_counter() - began > READY_S:
                    raise SystemExit(f"the gateway did not become ready: {server.log}")
                time.sleep(POLL_S)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Make the homes, start them in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="start-") as work, ExitStack() as stack:
        homes = [make_home(Path(work) / str(count), count, stack) for count in (FEW, chosen.adapters)]
        for _ in track(range(chosen.rounds), "starting"):
            for home in homes:
                home.seconds.append(start(home))
    print("\n| adapters | ready after, median (least to most) |\n|---:|---:|")
    for home in homes:
        middle = statistics.median(home.seconds)
        print(f"| {home.adapters:,} | {middle:.2f} s ({min(home.seconds):.2f} to {max(home.seconds):.2f}) |")


if __name__ == "__main__":
    main()
