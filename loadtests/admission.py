"""Does the gate keep a flood from the others, and what does it cost? And with many more adapters than slots?

    .venv/bin/python loadtests/admission.py flood      # about 4 minutes
    .venv/bin/python loadtests/admission.py keys       # about 4 minutes
    .venv/bin/python loadtests/admission.py slots      # about 3 minutes
    .venv/bin/python loadtests/admission.py mixed      # about 3 minutes
    .venv/bin/python loadtests/admission.py active     # about 5 minutes
    .venv/bin/python loadtests/admission.py proofs     # about 6 minutes

Starts gateways of its own, with an engine, on the prepared base model and copies of a sample adapter.

`flood`: first the most that the engine gives, five adapters and 64 connections without a gate. Then four adapters send
requests at random times (Poisson) that together come to half of that, alone; then the same with a fifth adapter that
floods over 64 connections, with fair admission and first come, first served. All streams are of one project and key.
`keys`: the same with one adapter, for which five keys ask, and the fifth of them floods.

At the end of both the queue is filled, and what is over the bound is timed: how fast a refusal is.

`slots`: four times as many adapters as slots, four connections for each, all of them busy all the time; fair, and
straight to the engine's socket, which is plain vLLM and its own queue. `mixed` is the same with connections that take
another adapter for each request. `active`: the same 16 connections over as many adapters as slots, then over two and
four times as many, what that costs beside the first, where every adapter is warm; and half of the connections over the
first: with twice as many adapters as slots about half of the 16 wait for one, and the engine decodes so many streams.

`proofs`: four adapters under half of what the engine gives, alone, and while one version after another is uploaded and
proven; the proofs wait behind callers, but for one in 5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from support import KEY, Running, Timing, gateway, make_adapters, percentile, prompt, push, session, stream, write_json

from service.client import HatrackClient

REPO = Path(__file__).resolve().parents[1]
PARTS = ("flood", "keys", "slots", "mixed", "active", "proofs")
BASE = REPO / "var" / "base" / "smollm2-135m-instruct"
SAMPLE = REPO / "var" / "samples" / "tidewater"
WORDS = 24
"""Words of a prompt; its tokens are about a third more."""
TOKENS = 48
"""Tokens of an answer on average: each is drawn from half to three halves of it."""
FLOOD = 64
SHARED = "voice-000"
"""For which all keys of `keys` ask."""
ACTIVE = 16
"""Connections of `active`."""
RAMP_S = 5.0
"""The four have been sending for this long when the flood begins, s."""
QUEUE_SHARE = 512
"""Half of HATRACK_QUEUE_SIZE as it is by default: what one key may have waiting."""


@dataclass
class Case:
    """What one case sent and got; times on `time.perf_counter`."""

    name: str
    began: float
    ended: float
    timings: list[Timing]

    def row(self, callers: list[str] | None = None) -> dict[str, Any]:
        """Its numbers; the times to the first token are of ``callers`` (models or keys) alone, where given."""
        span = self.ended - self.began
        chosen = [timing for timing in self.timings if callers is None or timing.caller in callers]
        firsts = [timing.ttft_ms for timing in chosen if timing.first]
        served = Counter({timing.caller: 0 for timing in self.timings})
        for timing in self.timings:
            served[timing.caller] += timing.tokens
        return {
            "case": self.name,
            "seconds": round(span, 1),
            "tokens_per_s": round(sum(timing.within(self.began, self.ended) for timing in self.timings) / span, 1),
            "requests": len(chosen),
            "refused": sum(timing.status not in (0, 200) for timing in chosen),
            "without_answer": sum(timing.status == 200 and not timing.first for timing in chosen),
            "first_token_ms_p50": round(percentile(firsts, 0.5)),
            "first_token_ms_p99": round(percentile(firsts, 0.99)),
            "first_token_ms_max": round(max(firsts, default=0)),
            "least_tokens_of_an_adapter": min(served.values(), default=0),
            "most_tokens_of_an_adapter": max(served.values(), default=0),
            "adapters_without_an_answer": sum(not count for count in served.values()),
        }


class Load:
    """Sends requests of one case for a while, and cuts off what is open at its end.

    With ``keys`` (secrets by name), what a source is made for names a key, and each key asks for `SHARED`.
    """

    def __init__(
        self, client: aiohttp.ClientSession, url: str, seed: int, keys: Mapping[str, str] | None = None
    ) -> None:
        self._client = client
        self._url = url
        self._seed = seed
        self._keys = keys or {}
        self.timings: list[Timing] = []

    async def run(self, name: str, seconds: float, *sources: Callable[[float, int], Awaitable[None]]) -> Case:
        """Let all ``sources`` send for ``seconds``."""
        print(f"  {name} …", end="", file=sys.stderr, flush=True)
        began = time.perf_counter()
        ended = began + seconds
        tasks = [asyncio.ensure_future(source(ended, self._seed + number)) for number, source in enumerate(sources)]
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*tasks)
                await asyncio.sleep(max(0.0, ended - time.perf_counter()))
        except TimeoutError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        print(f" {len(self.timings)} requests", file=sys.stderr, flush=True)
        return Case(name, began, min(ended, time.perf_counter()), self.timings)

    async def _one(self, caller: str, rng: random.Random) -> None:
        secret = self._keys.get(caller)
        timing = Timing(SHARED, time.perf_counter(), key=caller) if secret else Timing(caller, time.perf_counter())
        self.timings.append(timing)
        tokens = rng.randint(TOKENS // 2, TOKENS * 3 // 2)
        await stream(self._client, self._url, timing, prompt(WORDS, rng), tokens, secret or KEY)

    def busy(self, *models: str, after: float = 0.0) -> Callable[[float, int], Awaitable[None]]:
        """One connection that asks again as soon as it is answered, each time one of ``models`` at random."""

        async def send(ended: float, seed: int) -> None:
            rng = random.Random(seed)
            await asyncio.sleep(after)
            while time.perf_counter() < ended:
                await self._one(rng.choice(models), rng)

        return send

    def poisson(self, model: str, rate: float) -> Callable[[float, int], Awaitable[None]]:
        """Requests at random times, ``rate`` a second, whether or not the ones before are answered."""

        async def send(ended: float, seed: int) -> None:
            rng = random.Random(seed)
            async with asyncio.TaskGroup() as group:
                while True:
                    await asyncio.sleep(rng.expovariate(rate))
                    if time.perf_counter() >= ended:
                        return
                    group.create_task(self._one(model, random.Random(rng.random())))

        return send


async def flood(out: Path, seconds: float, *, by_key: bool) -> list[dict[str, Any]]:
    """The four, alone and beside a flood; one engine for both policies, adopted by the second gateway."""
    rows: list[dict[str, Any]] = []
    models = [f"voice-{number:03d}" for number in range(5)]
    keys: dict[str, str] = {}
    callers = [f"key-{number}" for number in range(5)] if by_key else models
    steady, flooding = callers[:4], callers[4]
    home = out / ("keys" if by_key else "flood")
    rate = 0.0
    for policy, keep in (("fifo", "true"), ("fair", "false")):
        settings = {"HATRACK_ADMISSION": policy, "HATRACK_KEEP_ENGINE": keep}
        async with _serving(home, 5, settings) as (running, client):
            await _warm(client, running.url, models)
            if by_key and not keys:
                keys.update(await asyncio.to_thread(make_keys, running, callers))
            if policy == "fifo":
                load = Load(client, running.url, 10, keys)
                full = await load.run("the most: 65 busy connections", seconds, *map(load.busy, callers * 13))
                rows.append(full.row())
                rate = rows[0]["tokens_per_s"] / 2 / TOKENS / len(steady)
                await asyncio.sleep(3)
            load = Load(client, running.url, 20, keys)
            alone = await load.run(f"{policy}: four alone", seconds, *(load.poisson(model, rate) for model in steady))
            rows.append(alone.row(steady))
            await asyncio.sleep(3)
            load = Load(client, running.url, 20, keys)
            beside = await load.run(
                f"{policy}: four beside a flood",
                seconds + RAMP_S,
                *(load.poisson(model, rate) for model in steady),
                *(load.busy(flooding, after=RAMP_S) for _ in range(FLOOD)),
            )
            beside.began += RAMP_S
            rows.append(beside.row(steady) | {"rate_of_each": round(rate, 3)})
            write_json(home.with_suffix(".json"), rows)
            if policy == "fair":
                write_json(out / "refusals.json", await refusals(client, running.url, models[-1]))
    return rows


def make_keys(running: Running, names: Sequence[str]) -> dict[str, str]:
    """The secrets of new keys of one project, by name."""
    with HatrackClient(base_url=running.url, api_key=KEY) as client:
        return {name: client.keys.create(name=name, scopes=["infer"])["key"] for name in names}


async def refusals(client: aiohttp.ClientSession, url: str, model: str) -> dict[str, float]:
    """How long it takes to be told that the queue is full, ms: 200 requests of a key that has its share waiting."""

    def ask() -> asyncio.Task[None]:
        return asyncio.create_task(stream(client, url, Timing(model, time.perf_counter()), "Once", 400))

    waiting = [ask() for _ in range(QUEUE_SHARE + FLOOD)]
    await asyncio.sleep(10)  # until the places in the engine are taken: prompts are let in a few at a time
    taken: list[float] = []
    try:
        while len(taken) < 200:
            timing = Timing(model, time.perf_counter())
            probe = asyncio.create_task(stream(client, url, timing, "Once", 400))
            done, _ = await asyncio.wait([probe], timeout=1)
            if not done:  # there was room: it waits now with the others
                waiting.append(probe)
                continue
            assert timing.status == 429, f"the queue is not full: {timing.status}"
            taken.append((timing.end - timing.sent) * 1000)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    found = {f"p{share:g}_ms": round(percentile(taken, share / 100), 2) for share in (50, 99, 100)}
    print(f"  refused by a full queue: {found}", file=sys.stderr, flush=True)
    return found


async def many(out: Path, seconds: float, slots: int, connections: int, *, mixed: bool) -> list[dict[str, Any]]:
    """Four times as many busy adapters as slots."""
    count = 4 * slots
    what = f"{count} adapters on {slots} slots, {connections * count} connections{', mixed' if mixed else ''}"
    rows = []
    async with _serving(out / "slots", count, {"HATRACK_ENGINE_SLOTS": str(slots)}) as (running, client):
        names = [f"voice-{number:03d}" for number in range(count)]
        await _warm(client, running.url, names)
        async with session(unix=running.engine_socket) as straight:
            for name, by, url, models in (
                ("fair", client, running.url, names),
                ("plain vLLM", straight, "http://engine", [running.digests[name] for name in names]),
            ):
                load = Load(by, url, 30)
                sources = [load.busy(*(models if mixed else [model])) for model in models * connections]
                rows.append((await load.run(f"{name}: {what}", seconds, *sources)).row())
                await asyncio.sleep(8)
    return rows


async def active(out: Path, seconds: float, slots: int) -> list[dict[str, Any]]:
    """As many active adapters as slots, and two and four times as many, under one closed load."""
    rows: list[dict[str, Any]] = []
    async with _serving(out / "active", 4 * slots, {"HATRACK_ENGINE_SLOTS": str(slots)}) as (running, client):
        names = [f"voice-{number:03d}" for number in range(4 * slots)]
        for times, connections in ((1, ACTIVE), (2, ACTIVE), (4, ACTIVE), (1, ACTIVE // 2)):
            models = names[: times * slots]
            await _warm(client, running.url, models)
            load = Load(client, running.url, 40)
            sources = [load.busy(*models) for _ in range(connections)]
            what = f"{len(models)} active adapters on {slots} slots, {connections} connections"
            rows.append((await load.run(what, seconds, *sources)).row())
            await asyncio.sleep(3)
    warm = rows[0]
    for row in rows[1:]:
        row["p99_of_warm"] = round(row["first_token_ms_p99"] / warm["first_token_ms_p99"], 2)
        row["throughput_of_warm"] = round(row["tokens_per_s"] / warm["tokens_per_s"], 2)
    return rows


async def proofs(out: Path, seconds: float) -> list[dict[str, Any]]:
    """Callers alone, and beside proofs of new versions."""
    shutil.rmtree(out / "proofs", ignore_errors=True)  # or the versions have been proven
    names = [f"voice-{number:03d}" for number in range(4)]
    fresh = make_adapters(SAMPLE, out / "adapters", 64)[len(names) :]
    rows: list[dict[str, Any]] = []
    async with _serving(out / "proofs", len(names), {}) as (running, client):
        await _warm(client, running.url, names)
        load = Load(client, running.url, 50)
        full = await load.run("the most: 16 busy connections", seconds, *map(load.busy, names * 4))
        rate = full.row()["tokens_per_s"] / 2 / TOKENS / len(names)
        proven = 0

        async def upload(ended: float, _: int) -> None:
            nonlocal proven
            for directory in fresh:
                if time.perf_counter() >= ended:
                    return
                await asyncio.to_thread(push, running, [directory])
                proven += 1

        for name, beside in (("alone", ()), ("beside proofs", (upload,)), ("alone again", ())):
            await asyncio.sleep(15)  # until a proof that was cut off has ended
            load = Load(client, running.url, 60)
            case = await load.run(name, 2 * seconds, *(load.poisson(model, rate) for model in names), *beside)
            rows.append(case.row() | {"rate_of_each": round(rate, 3), "proven": proven if beside else 0})
    return rows


class _serving(AsyncExitStack):
    """A gateway with ``count`` adapters and a client of it."""

    def __init__(self, home: Path, count: int, settings: dict[str, str]) -> None:
        super().__init__()
        self._arguments = home, count, settings

    async def __aenter__(self) -> tuple[Running, aiohttp.ClientSession]:  # type: ignore[override]
        home, count, settings = self._arguments
        await super().__aenter__()
        print(f"  starting a gateway ({settings}) …", file=sys.stderr, flush=True)
        running = await asyncio.to_thread(self.enter_context, gateway(home, BASE, settings))
        await asyncio.to_thread(push, running, make_adapters(SAMPLE, home.parent / "adapters", count))
        return running, await self.enter_async_context(session())


async def _warm(client: aiohttp.ClientSession, url: str, models: list[str]) -> None:
    """Everything is loaded and compiled before the clock starts."""
    rng = random.Random(0)
    for model in models:
        await stream(client, url, Timing(model, time.perf_counter()), prompt(8, rng), 4)
    await asyncio.gather(
        *(stream(client, url, Timing(model, time.perf_counter()), prompt(8, rng), 8) for model in models)
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal or a README."""
    columns = {
        "case": "case",
        "tokens_per_s": "tok/s",
        "requests": "requests",
        "first_token_ms_p50": "TTFT p50 ms",
        "first_token_ms_p99": "p99 ms",
        "first_token_ms_max": "max ms",
        "least_tokens_of_an_adapter": "least tokens",
        "adapters_without_an_answer": "starved",
        "proven": "versions proven",
        "p99_of_warm": "p99 beside warm",
        "throughput_of_warm": "tok/s beside warm",
    }
    columns = {name: title for name, title in columns.items() if any(name in row for row in rows)}
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


async def main() -> None:
    """Run the chosen cases; JSON into the output directory, a table to the terminal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all")
    parser.add_argument("--seconds", type=float, default=30, help="length of one case (default 30)")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--connections", type=int, default=4, help="for each adapter of `slots`")
    parser.add_argument("--out", type=Path, default=REPO / "var" / "loadtests" / "admission")
    arguments = parser.parse_args()
    for part in (arguments.part,) if arguments.part else PARTS:
        print(part, file=sys.stderr)
        if part in ("flood", "keys"):
            rows = await flood(arguments.out, arguments.seconds, by_key=part == "keys")
        elif part == "active":
            rows = await active(arguments.out, arguments.seconds * 2, arguments.slots)
        elif part == "proofs":
            rows = await proofs(arguments.out, arguments.seconds * 2)
        else:
            seconds, slots, connections = arguments.seconds * 2, arguments.slots, arguments.connections
            rows = await many(arguments.out, seconds, slots, connections, mixed=part == "mixed")
        write_json(arguments.out / f"{part}.json", rows)
        print(table(rows))


if __name__ == "__main__":
    asyncio.run(main())
