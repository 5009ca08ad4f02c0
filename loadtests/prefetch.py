"""What reading adapters ahead saves: how long a cold adapter's load takes, and how long it holds up other streams.

    .venv/bin/python -m loadtests.prefetch --base var/base/smollm2-135m-instruct --home /tmp/prefetch

Adapters keep all LoRA slots busy with streams. Then others are asked for, one at a time, that the engine has not loaded
and whose files the kernel has dropped from its memory. They wait for a slot. For every second one the file is dropped
again and again until its turn has come, as if nobody had read it ahead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import time
from pathlib import Path
from typing import Final

import aiohttp
import httpx

from loadtests.support import KEY, Running, Timing, gateway, prompt, push, session, stream
from tests.support.adapters import describe_base, make_adapter

SLOTS: Final = 2
STREAMS: Final = 4
RANK: Final = 64
MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DROP_S: Final = 0.01
_COLD: Final = re.compile(r"^hatrack_engine_cold_load(s|_seconds)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def drop(path: Path) -> None:
    """Have the kernel forget a file's pages."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cold_loads(running: Running) -> tuple[float, float]:
    """Loads so far, and the seconds from admission to first token that they took together."""
    text = httpx.get(f"{running.url}/metrics", headers={"authorization": f"Bearer {KEY}"}, timeout=30).text
    values = {suffix: float(value) for suffix, value in _COLD.findall(text)}
    return values["s"], values["_seconds"]


class Busy:
    """Streams that keep all slots busy, until told to stop."""

    def __init__(self, client: aiohttp.ClientSession, running: Running, models: list[str]) -> None:
        self._running, self._client = running, client
        self._streams = [asyncio.create_task(self._stream(models[number % len(models)])) for number in range(STREAMS)]
        self._stopped = False
        self.timings: list[Timing] = []

    async def _stream(self, model: str) -> None:
        rng = random.Random(model)
        while not self._stopped:
            timing = Timing(model, time.perf_counter())
            self.timings.append(timing)
            await stream(self._client, self._running.url, timing, prompt(8, rng), 48)

    def longest_gap_s(self, began: float, ended: float) -> float:
        """The longest time between two tokens of one stream that ended in this time."""
        gaps = [
            later - earlier
            for timing in self.timings
            for earlier, later in zip(timing.arrivals, timing.arrivals[1:], strict=False)
            if began <= later <= ended
        ]
        return max(gaps, default=0.0)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._streams)


async def load(running: Running, client: aiohttp.ClientSession, busy: Busy, name: str, *, ahead: bool) -> list[float]:
    """Ask for a cold adapter; returns the load's seconds and the longest gap in the other streams meanwhile, s."""
    weights = running.home / "adapters" / running.digests[name] / "adapter_model.safetensors"
    drop(weights)
    loads, seconds = cold_loads(running)
    began = time.perf_counter()
    timing = Timing(name, began)
    answer = asyncio.create_task(stream(client, running.url, timing, prompt(8, random.Random(name)), 2))
    while not answer.done():
        await asyncio.sleep(DROP_S)
        if not ahead:
            drop(weights)
    await answer
    after, total = cold_loads(running)
    if timing.status != 200 or after != loads + 1:
        raise SystemExit(f"{name} answered {timing.status}, and {after - loads:.0f} adapters were loaded")
    return [total - seconds, busy.longest_gap_s(began, timing.first)]


async def measure(running: Running, warm: list[str], cold: list[str]) -> None:
    """Load each cold adapter once, in turn with and without reading ahead, and print what it took."""
    taken: dict[bool, list[list[float]]] = {True: [], False: []}
    async with session() as client:
        busy = Busy(client, running, warm)
        await asyncio.sleep(8)  # the gateway has seen by then what the engine has loaded
        for number, name in enumerate(cold):
            ahead = number % 2 == 0
            taken[ahead].append(await load(running, client, busy, name, ahead=ahead))
            print(
                f"{'read ahead' if ahead else 'not read'}: {taken[ahead][-1][0]:.3f} s, gap {taken[ahead][-1][1]:.3f} s"
            )
        await busy.stop()
    print("\n| | load, from admission to first token | longest gap in the other streams |\n|---|---:|---:|")
    for ahead, label in ((False, "not read ahead"), (True, "read ahead")):
        seconds, gaps = zip(*taken[ahead], strict=True)
        print(f"| {label} | {statistics.median(seconds):.2f} s | {statistics.median(gaps):.2f} s |")


def main() -> None:
    """Make the adapters, start the gateway, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=10, help="cold adapters, each loaded once")
    chosen = parser.parse_args()
    base = describe_base(chosen.base)
    made = []
    for number in range(SLOTS + chosen.adapters):
        directory = chosen.home / "made" / f"big-{number}"
        if not directory.exists():
            make_adapter(directory, base, rank=RANK, scale=0.001, seed=number, modules=MODULES)
        made.append(directory)
    size = (made[0] / "adapter_model.safetensors").stat().st_size
    print(f"{len(made)} adapters of {size / 1e6:.0f} MB")
    settings = {
        "HATRACK_ENGINE_SLOTS": str(SLOTS),
        "HATRACK_ENGINE_RESIDENT": str(2 * SLOTS),
        "HATRACK_ENGINE_MAX_RANK": str(RANK),
    }
    with gateway(chosen.home / "var", chosen.base, settings, "--no-trainer") as running:
        push(running, made)
        names = [directory.name for directory in made]
        asyncio.run(measure(running, names[:SLOTS], names[SLOTS:]))


if __name__ == "__main__":
    main()
