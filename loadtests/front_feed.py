"""What a front's feed costs gateway and front with many adapters: all of it at first, and one change later.

.venv/bin/python loadtests/front_feed.py [--adapters 100000] [--keys 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from types import MappingProxyType
from typing import Any, cast

import orjson

from adapters.base import Fingerprint
from service.access.authentication import Authenticator, KeyEntry
from service.access.caller import Caller, Scope
from service.fronts.feed import Feed
from service.fronts.follower import Follower, View, _Known
from service.fronts.topology import ToldBase, Topology
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot, Servable, VersionEntry, VersionSettings

FINGERPRINT = Fingerprint(
    **dict.fromkeys(("weights", "config", "tokenizer", "template", "dtype", "quantization", "engine_version"), "x")
)


def adapter(number: int, live: int = 2) -> AdapterEntry:
    """One with two versions."""
    versions = {
        each: VersionEntry(
            each, sha256(f"{number}.{each}".encode()).hexdigest(), VersionSettings(), Servable.OK, 1, base="base"
        )
        for each in (1, 2)
    }
    return AdapterEntry(f"voice-{number}", 1, MappingProxyType(versions), MappingProxyType({"live": live}))


async def part(lines: AsyncIterator[bytes]) -> tuple[list[bytes], float]:
    """The lines up to the next `ready`, and the longest time that the event loop was held for one, s."""
    taken, longest, last = [], 0.0, time.process_time()
    async for line in lines:
        now = time.process_time()
        longest, last = max(longest, now - last), now
        taken.append(line)
        if orjson.loads(line)["t"] == "ready":
            return taken, longest
        last = time.process_time()
    raise AssertionError("the feed has ended")


async def main(adapters: int, number_of_keys: int) -> None:
    """Print seconds of CPU time of both sides."""
    base = ToldBase(
        name="base", created_at=1, fingerprint=FINGERPRINT, context=2048, prompt_tokens=2048, token_chars=128
    )
    topology = Topology(version="0", policy={}, embedder=None, bases=(base,), engines=())
    keys, catalog = Authenticator("the-admin-key-of-this-test"), Catalog("base", 1)
    entries = {("project", f"voice-{number}"): adapter(number) for number in range(adapters)}
    keys.load({
        sha256(str(number).encode()).digest(): KeyEntry(Caller(f"key_{number}", "project", frozenset({Scope.INFER})))
        for number in range(number_of_keys)
    })  # fmt: skip
    catalog.replace(CatalogSnapshot(MappingProxyType(entries)))
    gc.collect()
    gc.freeze()  # as a gateway does
    feed = Feed(keys, catalog, topology, exhausted=dict, fronts=lambda: 1, salts=b"s").lines()
    began = time.process_time()
    whole, longest = await part(feed)
    print(f"to tell all: {time.process_time() - began:.2f} s, at most {longest * 1e3:.1f} ms at a time;", end=" ")
    print(f"{sum(map(len, whole)) / 2**20:.0f} MiB")

    view = View(Authenticator("", b"s" * 32), Catalog("base", 1))

    async def make_view(*_: Any) -> View:
        return view

    follower, known = Follower(cast(Any, None), 60, make_view, cast(Any, None)), _Known()
    follower.trouble = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for line in whole:
        await follower._hear(known, orjson.loads(line))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"to take it over: {time.process_time() - began:.2f} s, {grown:.0f} MiB of memory")

    changed = {**entries, ("project", "voice-5"): adapter(5, live=1)}
    catalog.replace(CatalogSnapshot(MappingProxyType(changed)), changed={("project", "voice-5")})
    began = time.process_time()
    one, _ = await part(feed)
    told = time.process_time()
    for line in one:
        await follower._hear(known, orjson.loads(line))
    print(f"one change: {(told - began) * 1e3:.1f} ms to tell, {(time.process_time() - told) * 1e3:.1f} to take over")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=10_000)
    given = parser.parse_args()
    asyncio.run(main(given.adapters, given.keys))
