"""What front and agent add to a stream, beside a gateway that is one process over the same engine; and their CPU."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import aiohttp
import psutil

from loadtests.fronts.installation import HEADERS, Installation

NAME = "voice"
STREAMS = 8
ROUND_S = 10.0


@dataclass
class Streams:
    """What the streams of one side took."""

    tokens: int
    """Of each."""
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    """Of the processes between client and engine."""
    seconds: float = 0.0
    idle: float = 0.0
    """Cores that these take without requests."""

    @property
    def chunk_us(self) -> float:
        """CPU time a chunk beyond what they take without requests, µs."""
        return (self.cpu_s - self.idle * self.seconds) / (len(self.whole_s) * self.tokens) * 1e6


def measure(made: Installation, rounds: int, tokens: int) -> None:
    """Print for streams of so many tokens what is added, at the median, and the CPU time a chunk."""
    made.push(NAME)
    assert made.single is not None
    assert made.single.process is not None
    cluster, single, split = made.cluster, Streams(tokens), Streams(tokens)
    assert cluster.gateway.process is not None
    parts = [*cluster.fronts, *cluster.agents.values()]
    own = [psutil.Process(made.single.process.pid)]
    others = [psutil.Process(pid) for pid in (cluster.gateway.process.pid, *(each.pid for each in parts))]
    before = [_cpu_s(own), _cpu_s(others)]
    time.sleep(ROUND_S)
    single.idle, split.idle = ((_cpu_s(each) - was) / ROUND_S for each, was in zip((own, others), before, strict=True))
    for _ in range(rounds):
        asyncio.run(_streams(single, [made.single.url], own))
        asyncio.run(_streams(split, made.fronts, others))
    for what, of in (("first chunk", "first_s"), ("whole stream", "whole_s")):
        one, several = (statistics.median(getattr(side, of)) * 1e3 for side in (single, split))
        print(f"{what}, {STREAMS} streams of {tokens} tokens, p50: {one:.1f} ms as one process, + {several - one:.1f}")
    print(
        f"CPU a chunk, requests included: {single.chunk_us:.0f} us as one process, {split.chunk_us:.0f} in all of the "
        f"others; without requests {single.idle:.3f} and {split.idle:.3f} cores"
    )


async def _streams(side: Streams, urls: list[str], processes: list[psutil.Process]) -> None:
    """Stream without pause for ROUND_S."""
    before = _cpu_s(processes)
    until = time.perf_counter() + ROUND_S
    async with aiohttp.ClientSession(headers=HEADERS) as http:
        await asyncio.gather(*(_stream(side, http, urls[number % len(urls)], until) for number in range(STREAMS)))
    side.cpu_s += _cpu_s(processes) - before
    side.seconds += time.perf_counter() - until + ROUND_S


async def _stream(side: Streams, http: aiohttp.ClientSession, url: str, until: float) -> None:
    body = {"model": NAME, "prompt": "Once upon a time", "max_tokens": side.tokens, "stream": True}
    while (began := time.perf_counter()) < until:
        async with http.post(f"{url}/v1/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            await answer.content.readany()
            side.first_s.append(time.perf_counter() - began)
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        side.whole_s.append(time.perf_counter() - began)


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
