"""How often a request finds its adapter in a slot, beside the same requests over a hash and an LRU list alone."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, cast

import aiohttp

from loadtests.fronts.installation import HEADERS, SLOTS, Installation, complete
from service.agents import Agent, ServedBase
from tests.support.cluster import ENGINES

ADAPTERS = 50
STREAMS = 8


def names(count: int) -> list[str]:
    """The adapters."""
    return [f"voice-{number}" for number in range(count)]


def hit_rate(asked: Iterable[Iterable[str]]) -> float:
    """The share of requests that find their adapter in one of the engine's SLOTS; the least recently used gives way."""
    hits = total = 0
    for models in asked:
        loaded: OrderedDict[str, None] = OrderedDict()
        for model in models:
            hits, total = hits + (model in loaded), total + 1
            loaded[model] = None
            loaded.move_to_end(model)
            if len(loaded) > SLOTS:
                loaded.popitem(last=False)
    return hits / total


def offline(digests: list[str]) -> dict[str, list[str]]:
    """The requests of each engine, by the hash of their digests alone."""
    nobody = cast(Any, None)
    base = ServedBase(nobody, 0, [Agent(name, nobody, nobody, nobody, nobody) for name in ENGINES])
    asked: dict[str, list[str]] = {name: [] for name in ENGINES}
    for digest in digests:
        asked[base.agent_for(digest).name].append(digest)
    return asked


def fitting(made: Installation) -> list[str]:
    """As many adapters as fit into the slots of the engines that they belong to."""
    room = dict.fromkeys(ENGINES, SLOTS)
    chosen = []
    for name, digest in made.digests.items():
        [engine] = [engine for engine, digests in offline([digest]).items() if digests]
        if room[engine]:
            room[engine] -= 1
            chosen.append(name)
    return chosen


async def ask(made: Installation, models: list[str]) -> None:
    """Ask for each model once, STREAMS at a time, at both fronts."""
    rest = iter(enumerate(models))

    async def stream(http: aiohttp.ClientSession) -> None:
        for number, model in rest:
            status, _ = await complete(http, made.fronts[number % 2], model, tokens=2)
            assert status == 200, status

    async with aiohttp.ClientSession(headers=HEADERS) as http:
        await asyncio.gather(*(stream(http) for _ in range(STREAMS)))


def measure(made: Installation, requests: int) -> None:
    """Print both rates, for more adapters than slots and for as many."""
    made.push(*names(ADAPTERS))
    rng = random.Random(1)
    zipf = [1 / rank for rank in range(1, ADAPTERS + 1)]
    for what, models in (
        (f"{ADAPTERS} adapters, Zipf 1", rng.choices(names(ADAPTERS), zipf, k=requests)),
        ("as many as fit", rng.choices(fitting(made), k=requests)),
    ):
        before = made.asked()
        asyncio.run(ask(made, models))
        came = [asked[len(before[name]) :] for name, asked in made.asked().items()]
        assert sum(map(len, came)) == requests
        measured, best = hit_rate(came), hit_rate(offline([made.digests[model] for model in models]).values())
        print(f"{what}, {requests} requests: {measured:.3f} in a slot, offline {best:.3f}: {measured / best:.3f}")
