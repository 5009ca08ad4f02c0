"""A gateway with everything on that gets many times what its engine can carry.

    .venv/bin/python -m loadtests.overload
    .venv/bin/python -m loadtests.overload --set HATRACK_QUEUE_TIMEOUT_S=1

`hatrack serve` stands before a fake engine that decodes 8 streams at once, 20 ms a token. Four projects first keep all
its places busy, which gives what it can carry; then their requests come at random (a Poisson process) at 25 times that
rate, for 20 s, and once more 10 s later: what grows would grow again. The driver has a connection for every request
that may wait, and takes each time from the arrival.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop

from loadtests.gateway.cells import percentile
from loadtests.gateway.clock import cpu_s
from loadtests.gateway.driver import Connection, Load, Run
from loadtests.gateway.peers import ENGINE_MODEL, MODEL
from loadtests.gateway.standing import Footprint, Standing, standing

PROJECTS = ("team", "sales", "support", "research")
TOKENS = 32
SAMPLE_S = 1.0
SCRAPE_EVERY = 5
"""Samples between two reads of `/metrics`."""
SETTLE_S = 10.0
REFUSAL_AIM_MS = 50.0
OVERLOAD_STATUSES = (429, 503)


@dataclass(slots=True)
class Outcomes:
    """What came of the requests of one phase. Times in seconds, from a request's arrival."""

    first_s: list[float] = field(default_factory=list)
    """To the first event, of requests that were answered whole."""
    refused: Counter[int] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    broken: int = 0
    """Streams that ended early, connections that were closed under a request."""
    waiting: int = 0
    """Still without an answer, or in the middle of it, at the end."""
    wall_s: float = 0.0
    gateway_cpu_s: float = 0.0

    @property
    def answers_per_s(self) -> float:
        return len(self.first_s) / self.wall_s

    @property
    def late_refusals(self) -> int:
        """Refusals that took longer than is aimed for."""
        return sum(took_s * 1000 > REFUSAL_AIM_MS for took_s in self.refused_s)

    @property
    def errors(self) -> int:
        """Refusals with any other status than 429 and 503."""
        return sum(count for status, count in self.refused.items() if status not in OVERLOAD_STATUSES)


class OverloadRun(Run):
    """Notes what became of each request, in outcomes that several runs may share."""

    def __init__(self, load: Load, outcomes: Outcomes) -> None:
        super().__init__(load)
        self._outcomes = outcomes

    def answered(self, connection: Connection, answer: bytes, arrived: float, first: float) -> None:
        """Note one answer, and give the connection its next request."""
        outcomes, now = self._outcomes, time.monotonic()
        status = int(answer[9:12])
        if status != 200:
            outcomes.refused[status] += 1
            outcomes.refused_s.append(now - arrived)
            head = answer[: answer.find(b"\r\n\r\n")].lower()
            outcomes.without_retry_after += status in OVERLOAD_STATUSES and b"\r\nretry-after:" not in head
        elif answer.count(b'"delta":') < self.load.tokens:
            outcomes.broken += 1
        else:
            outcomes.first_s.append(first - arrived)
        super().answered(connection, answer, arrived, first)

    def lost(self, connection: Connection) -> None:
        """A connection was closed."""
        self._outcomes.broken += connection.busy and not self._ending
        super().lost(connection)


async def drive(loads: Sequence[Load], outcomes: Outcomes, gateway: int) -> None:
    """Run loads side by side; ``gateway`` is its process."""
    runs = [OverloadRun(load, outcomes) for load in loads]
    began, cpu = time.monotonic(), cpu_s(gateway)
    seen = await asyncio.gather(*(run() for run in runs))
    outcomes.wall_s += time.monotonic() - began
    outcomes.gateway_cpu_s += cpu_s(gateway) - cpu
    outcomes.waiting += sum(one.unanswered for one in seen)


async def peak(both: Standing) -> Footprint:
    """The most that the gateway's process held until this was cancelled; reads its metrics, as Prometheus would."""
    most, samples = both.footprint(), 0
    try:
        while True:
            await asyncio.sleep(SAMPLE_S)
            most = most.peak(both.footprint())
            samples += 1
            if samples % SCRAPE_EVERY == 0:
                await asyncio.to_thread(both.metrics)
    except asyncio.CancelledError:
        return most


@dataclass(frozen=True, slots=True)
class Result:
    """What it carries, what came of the floods, and the gateway's process before, during and after each of them."""

    alone: Outcomes
    flood: Outcomes
    offered_per_s: float
    held: dict[str, Footprint]
    left: dict[str, int]
    """Streams at the engine after the last flood."""


async def measure(both: Standing, chosen: argparse.Namespace) -> Result:
    """First what it can carry, then the floods."""
    sequences, seconds, alone, pid = chosen.sequences, chosen.seconds, Outcomes(), both.gateway.server.pid
    keys = [both.gateway.key, *(both.key(project) for project in PROJECTS[1:])]
    names = [MODEL, *(ENGINE_MODEL for _ in PROJECTS[1:])]
    each = sequences // len(PROJECTS)
    loads = [
        Load(both.port, each, seconds / 2, name, key, tokens=TOKENS, seed=number)
        for number, (name, key) in enumerate(zip(names, keys, strict=True))
    ]
    await drive(loads, alone, pid)
    rate = chosen.times * alone.answers_per_s
    share, places = rate / len(loads), chosen.connections // len(loads)
    floods = [
        Load(both.port, places, seconds, load.model, load.key, TOKENS, share, seed=load.seed + 10) for load in loads
    ]
    await asyncio.sleep(1)
    flood, held = Outcomes(), {"before": both.footprint()}
    for number in range(1, chosen.rounds + 1):
        watch = asyncio.create_task(peak(both))
        await drive(floods, flood, pid)
        watch.cancel()
        held[f"during flood {number}, at most"] = await watch
        await asyncio.sleep(SETTLE_S)
        held[f"{SETTLE_S:.0f} s after flood {number}"] = both.footprint()
    return Result(alone, flood, rate, held, both.engine_load())


def report(result: Result) -> str:
    """The tables."""
    alone, flood = result.alone, result.flood
    statuses = ", ".join(f"{count:,} × {status}" for status, count in sorted(flood.refused.items())) or "none"
    lines = [
        f"It carries {alone.answers_per_s:.1f} requests/s of {TOKENS} tokens; {result.offered_per_s:.0f} came.",
        "",
        "| | p50 | p99 | max |",
        "|---|---:|---:|---:|",
        _row(f"first token alone ({len(alone.first_s)} answers)", alone.first_s),
        _row(f"first token of what was admitted ({len(flood.first_s)} answers)", flood.first_s),
        _row(f"refusal ({len(flood.refused_s)}; aim: p99 under {REFUSAL_AIM_MS:.0f} ms)", flood.refused_s),
        "",
        f"answers/s of what it carries: {flood.answers_per_s / alone.answers_per_s:.0%}",
        f"refused: {statuses}; after more than {REFUSAL_AIM_MS:.0f} ms: {flood.late_refusals}; "
        f"429 and 503 without Retry-After: {flood.without_retry_after}",
        f"CPU of the gateway: {flood.gateway_cpu_s / flood.wall_s:.2f} cores",
        f"other errors: {flood.errors}; broken answers: {flood.broken} (aim: none); "
        f"waiting at the ends: {flood.waiting}",
        f"streams at the engine afterwards: {result.left['streams']}",
        "",
        "| the gateway's process | memory | threads | descriptors |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {held.rss_mib:.0f} MiB | {held.threads} | {held.descriptors} |"
            for name, held in result.held.items()
        ),
    ]
    return "\n".join(lines)


def _row(name: str, values_s: Sequence[float]) -> str:
    if not values_s:
        return f"| {name} | | | |"
    figures = (percentile(values_s, 0.5), percentile(values_s, 0.99), max(values_s))
    return f"| {name} | " + " | ".join(f"{value * 1000:,.0f} ms" for value in figures) + " |"


def setting(text: str) -> tuple[str, str]:
    """A `HATRACK_NAME=value` of the command line."""
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("HATRACK_"):
        raise argparse.ArgumentTypeError(f"must be HATRACK_NAME=value; got {text!r}")
    return name, value


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=25.0, help="how many times as much as the engine carries")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2, help="floods")
    parser.add_argument("--sequences", type=int, default=8, help="streams that the engine decodes at once")
    parser.add_argument("--pace-ms", type=float, default=20.0, help="time between two tokens of a stream")
    parser.add_argument("--connections", type=int, default=1280, help="connections of the driver during the flood")
    parser.add_argument("--core", type=int, default=0, help="of the gateway and the engine")
    parser.add_argument("--set", type=setting, action="append", default=[], help="a setting of the gateway's")
    chosen = parser.parse_args(argv)
    with standing(
        sequences=chosen.sequences, pace_ms=chosen.pace_ms, core=chosen.core, settings=dict(chosen.set)
    ) as both:
        print(report(uvloop.run(measure(both, chosen))))


if __name__ == "__main__":
    main()
