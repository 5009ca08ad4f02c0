"""One adapter to a thousand: S-LoRA's experiment, beside plain vLLM with the same flags and PEFT in one process.

    .venv/bin/python -m loadtests.thousand                       # 1, 10, 100 and 1,000 adapters
    .venv/bin/python -m loadtests.thousand --counts 1,10,100

Each side runs alone. It gets the same requests twice: over 16 connections as fast as it can (throughput), then at the
times of a gamma process, at 0.7 of the rate that Hatrack answered with one adapter (time to the first token, and how
many had it within 6 s). Hatrack is asked through its gateway, with a key; its adapters are pushed and proven through
the API, more and more of them. Plain vLLM has all of them by ``--lora-modules`` from the start. A thousand adapters of
rank 16 take 10 GB on the disk, twice. Prints a table and draws it (``thousand.svg`` beside ``thousand.json``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import aiohttp

from loadtests import chart
from loadtests.engine import (
    BASE,
    REPO,
    SLOTS,
    STREAMS,
    Server,
    engine_config,
    plain_vllm,
    random_adapters,
    resident,
    settings,
)
from loadtests.support import Timing, gateway, push, session, stream, write_json
from loadtests.thousand.workload import FIRST_TOKEN_S, Outcome, Request, outcome, trace

SIDES: Final = ("Hatrack", "plain vLLM", "PEFT")
LOAD: Final = 0.7
"""Of the requests/s that Hatrack answers with one adapter."""

Found = dict[int, dict[str, Outcome]]
"""By the number of adapters and the phase, *saturated* or *arrivals*."""


class Plan:
    """The requests of each count and phase: the same for every side."""

    def __init__(self, requests: int, cv: float) -> None:
        self._requests, self._cv = requests, cv
        self.rate = 0.0
        """Requests a second of the arrivals; 0 until `calibrate`."""

    def saturated(self, count: int) -> list[Request]:
        return trace(count, self._requests)

    def arrivals(self, count: int) -> list[Request]:
        return trace(count, self._requests, rate=self.rate, cv=self._cv, seed=8)

    def calibrate(self, with_one: Outcome) -> None:
        """Set the rate from what the first side reached with one adapter, unless it is set."""
        sent = self.saturated(1)
        mean = sum(request.tokens for request in sent) / len(sent)
        self.rate = self.rate or LOAD * with_one.tokens_per_s / mean


async def _closed(client: aiohttp.ClientSession, server: Server, requests: Sequence[Request]) -> list[Timing]:
    left, timings = iter(requests), list[Timing]()

    async def connection() -> None:
        for request in left:
            timings.append(await _ask(client, server, request))

    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(connection())
    return timings


async def _open(client: aiohttp.ClientSession, server: Server, requests: Sequence[Request]) -> list[Timing]:
    began, tasks = time.perf_counter(), list[asyncio.Task[Timing]]()
    async with asyncio.TaskGroup() as group:
        for request in requests:
            await asyncio.sleep(began + request.at_s - time.perf_counter())
            tasks.append(group.create_task(_ask(client, server, request)))
    return [task.result() for task in tasks]


async def _ask(client: aiohttp.ClientSession, server: Server, request: Request) -> Timing:
    timing = Timing(server.model(request.adapter), time.perf_counter())
    await stream(client, server.url, timing, request.text, request.tokens)
    if timing.status == 200 and timing.tokens != request.tokens:
        raise RuntimeError(f"{timing.model}: {timing.tokens} of {request.tokens} tokens")
    return timing


async def _phases(server: Server, count: int, plan: Plan) -> dict[str, Outcome]:
    """Warm up (the kernels are compiled, slots are full), then both phases."""
    async with session() as client:
        warm = [Request(0, adapter % count, f"warm {adapter}", 4) for adapter in range(SLOTS)]
        await _closed(client, server, warm)
        saturated = outcome(await _closed(client, server, plan.saturated(count)))
        plan.calibrate(saturated)
        return {"saturated": saturated, "arrivals": outcome(await _open(client, server, plan.arrivals(count)))}


def of_hatrack(home: Path, base: Path, adapters: Sequence[Path], counts: Sequence[int], plan: Plan) -> Found:
    """Push up to each count in turn and measure with it."""
    found: Found = {}
    with gateway(home, base, settings(home, base, len(adapters)), "--no-trainer") as running:
        served = engine_config(home, base, len(adapters)).base_name
        there = 0
        for count in counts:
            began = time.perf_counter()
            push(running, list(adapters[there:count]))
            _log(f"  {count - there} adapters pushed and proven in {time.perf_counter() - began:.0f} s")
            there = count
            server = Server(running.url, served, [directory.name for directory in adapters[:count]])
            found[count] = asyncio.run(_phases(server, count, plan))
            _log(f"  {count}: {found[count]}")
    return found


def of_plain(home: Path, base: Path, adapters: Sequence[Path], counts: Sequence[int], plan: Plan) -> Found:
    """All adapters at its start, asked for as many as each count says."""
    found: Found = {}
    with plain_vllm(home, base, adapters) as server:
        for count in counts:
            found[count] = asyncio.run(_phases(server, count, plan))
            _log(f"  {count}: {found[count]}")
    return found


def of_peft(home: Path, base: Path, adapters: Sequence[Path], counts: Sequence[int], plan: Plan) -> Found:
    """In this process, which holds as many adapters as the engines may."""
    from loadtests.thousand.swapping import Swapping  # only here, for it imports torch

    dtype = engine_config(home, base, len(adapters)).dtype
    swapping = Swapping(base, adapters, dtype=dtype, resident=resident(len(adapters)), batch=STREAMS)
    found: Found = {}
    for count in counts:
        found[count] = {
            "saturated": outcome(swapping.run(plan.saturated(count), STREAMS)),
            "arrivals": outcome(swapping.run(plan.arrivals(count))),
        }
        _log(f"  {count}: {found[count]}")
    return found


def table(found: dict[str, Found]) -> str:
    """Markdown: a line for each count and side."""
    lines = [
        "| adapters | | tokens/s | of one adapter | p50, p99 to the first token "
        f"| within {FIRST_TOKEN_S:.0f} s | refused |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for count in next(iter(found.values())):
        for side, counts in found.items():
            full, timed = counts[count]["saturated"], counts[count]["arrivals"]
            one = full.tokens_per_s / counts[min(counts)]["saturated"].tokens_per_s
            lines.append(
                f"| {count:,} | {side} | {full.tokens_per_s:.0f} | {one:.2f} | {timed.first_p50_s:.2f}, "
                f"{timed.first_p99_s:.2f} s | {timed.attained:.0%} | {full.refused + timed.refused} |"
            )
    return "\n".join(lines)


def drawing(found: dict[str, Found], note: str) -> str:
    """The throughput and the p99 of each count as an SVG."""
    rows: dict[str, list[float | None]] = {}
    for count in next(iter(found.values())):
        of = [counts[count] for counts in found.values()]
        rows[f"{count:,} adapters: tokens/s"] = [phases["saturated"].tokens_per_s for phases in of]
        rows[f"{count:,} adapters: p99 to first token, s"] = [phases["arrivals"].first_p99_s for phases in of]
    return chart.draw("One to a thousand adapters", note, chart.panels(rows, list(found), lambda name: "p99" in name))


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1,10,100,1000", help="how many adapters, ascending")
    parser.add_argument("--requests", type=int, default=200, help="of each phase")
    parser.add_argument("--cv", type=float, default=1.0, help="of the times between arrivals")
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s of the arrivals; default: see above")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--out", type=Path, default=REPO / "var" / "loadtests" / "thousand")
    chosen = parser.parse_args()
    counts = sorted(int(count) for count in chosen.counts.split(","))
    base, out = chosen.base.resolve(), chosen.out.resolve()
    adapters = random_adapters(base, out / "adapters", counts[-1])
    plan = Plan(chosen.requests, chosen.cv)
    plan.rate = chosen.rate
    measured: dict[str, Callable[[Path, Path, Sequence[Path], Sequence[int], Plan], Found]] = dict(
        zip(SIDES, (of_hatrack, of_plain, of_peft), strict=True)
    )
    found: dict[str, Found] = {}
    for side, measure in measured.items():
        _log(side)
        found[side] = measure(out / side.replace(" ", "-").lower(), base, adapters, counts, plan)
        plain = {name: {n: {p: asdict(o) for p, o in ph.items()} for n, ph in by.items()} for name, by in found.items()}
        write_json(out / "thousand.json", {"rate": plan.rate, "load_average": os.getloadavg(), "found": plain})
    note = f"{SLOTS} slots, Zipf; {STREAMS} connections, then {plan.rate:.2f} requests/s (cv {chosen.cv:g})"
    (out / "thousand.svg").write_text(drawing(found, note))
    print(f"{note}\n\n{table(found)}")


if __name__ == "__main__":
    main()
