"""What front and agent add to a stream, beside a gateway that is one process over the same engine; and their CPU."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import psutil

from loadtests.fronts.installation import HEADERS, Installation

NAME = "voice"
STREAMS = 8
ROUND_S = 10.0
Processes = Mapping[str, Sequence[psutil.Process]]
"""By what they are."""


@dataclass
class Streams:
    """What the streams of one side took."""

    tokens: int
    """Of each."""
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of the processes between client and engine, by what they are."""
    seconds: float = 0.0
    idle: dict[str, float] = field(default_factory=dict)
    """Cores that these take without requests."""

    def chunk_us(self) -> dict[str, float]:
        """CPU time a chunk beyond what they take without requests, µs."""
        chunks = len(self.whole_s) * self.tokens
        return {kind: (cpu_s - self.idle[kind] * self.seconds) / chunks * 1e6 for kind, cpu_s in self.cpu_s.items()}


def measure(made: Installation, rounds: int, tokens: int) -> None:
    """Print for streams of so many tokens what is added, at the median, and the CPU time a chunk."""
    made.push(NAME)
    assert made.single is not None
    assert made.single.process is not None
    cluster, single, split = made.cluster, Streams(tokens), Streams(tokens)
    assert cluster.gateway.process is not None
    own = {"one process": [psutil.Process(made.single.process.pid)]}
    others = {
        "gateway": [psutil.Process(cluster.gateway.process.pid)],
        "fronts": [psutil.Process(front.pid) for front in cluster.fronts],
        "agents": [psutil.Process(agent.pid) for agent in cluster.agents.values()],
    }
    before = cpu_s(own | others)
    time.sleep(ROUND_S)
    idle = {kind: (now - before[kind]) / ROUND_S for kind, now in cpu_s(own | others).items()}
    single.idle = split.idle = idle
    for _ in range(rounds):
        asyncio.run(_streams(single, [made.single.url], own))
        asyncio.run(_streams(split, made.fronts, others))
    for what, of in (("first chunk", "first_s"), ("whole stream", "whole_s")):
        one, several = (statistics.median(getattr(side, of)) * 1e3 for side in (single, split))
        print(f"{what}, {STREAMS} streams of {tokens} tokens, p50: {one:.1f} ms as one process, + {several - one:.1f}")
    alone, together = single.chunk_us(), split.chunk_us()
    shares = ", ".join(f"{kind} {each:.0f}" for kind, each in together.items())
    print(
        f"CPU a chunk, requests included: {sum(alone.values()):.0f} us as one process, {sum(together.values()):.0f} in "
        f"all of the others ({shares}); without requests {idle['one process']:.3f} and "
        f"{sum(idle[kind] for kind in others):.3f} cores"
    )


async def _streams(side: Streams, urls: list[str], processes: Processes) -> None:
    """Stream without pause for ROUND_S."""
    before = cpu_s(processes)
    until = time.perf_counter() + ROUND_S
    async with aiohttp.ClientSession(headers=HEADERS) as http:
        await asyncio.gather(*(_stream(side, http, urls[number % len(urls)], until) for number in range(STREAMS)))
    for kind, now in cpu_s(processes).items():
        side.cpu_s[kind] += now - before[kind]
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


def cpu_s(processes: Processes) -> dict[str, float]:
    """CPU time that processes have taken so far, by what they are, s."""
    return {kind: sum(sum(process.cpu_times()[:2]) for process in each) for kind, each in processes.items()}
