"""How exactly a key's limits hold over two fronts, one of which has nearly all of the traffic; and what a killed front
gives back."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import psutil

from loadtests.fronts.installation import HEADERS, Installation, complete
from loadtests.fronts.latency import cpu_s
from tests.support.cluster import Process, is_ready, until
from tests.support.gateway import Gateway

PER_MINUTE = 1200
OFFERED = 2.0
"""Times the limit."""
BUSY_SHARE = 0.95
"""Of the requests, at the first front."""
MEASURED_S = 60.0
CALLERS = 16
TURNS, TURN_S = 3, 5.0
HELD_TOKENS = 2000
"""Of the answer that a front is killed in: 20 s at the stub's pace."""


def measure(made: Installation, kills: int) -> None:
    """Print both, and what a question for limits takes."""
    made.push("limited")
    _print_cost(made)
    _print_rates(made)
    seconds = [_killed(made) for _ in range(kills)]
    print(f"a killed front's place, {kills} times: free again after {', '.join(f'{each:.1f}' for each in seconds)} s")


def _print_cost(made: Installation) -> None:
    """CPU of gateway and fronts a request, of a key with limits beside one without, in turn."""
    cluster = made.cluster
    assert cluster.gateway.process is not None
    processes = {
        "gateway": [psutil.Process(cluster.gateway.process.pid)],
        "fronts": [psutil.Process(front.pid) for front in cluster.fronts],
    }
    unlimited, limited = HEADERS, _key(cluster.gateway, requests_per_minute=10**6, tokens_per_day=10**9)
    took: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for _ in range(TURNS):
        for what, headers in (("without", unlimited), ("with", limited)):
            before = cpu_s(processes)
            requests = asyncio.run(_ask(made.fronts, headers))
            took[what].append({kind: (now - before[kind]) / requests for kind, now in cpu_s(processes).items()})
    for what, turns in took.items():
        each = ", ".join(f"{kind} {statistics.median(turn[kind] for turn in turns) * 1e6:.0f}" for kind in processes)
        print(f"us of CPU a request of a key {what} limits, {TURNS} turns of {TURN_S:g} s, p50: {each}")


async def _ask(fronts: list[str], headers: dict[str, str]) -> int:
    """Requests without pause for a turn; returns how many were answered."""
    answered, until_s = 0, time.perf_counter() + TURN_S
    async with aiohttp.ClientSession(headers=headers) as http:
        for front in fronts:
            await _until(http, front, lambda status: status == 200)

        async def caller(number: int) -> None:
            nonlocal answered
            while time.perf_counter() < until_s:
                status, _ = await complete(http, fronts[number % len(fronts)], "limited", tokens=1)
                assert status == 200
                answered += 1

        await asyncio.gather(*map(caller, range(CALLERS)))
    return answered


def _print_rates(made: Installation) -> None:
    headers = _key(made.cluster.gateway, requests_per_minute=PER_MINUTE)
    admitted, took = asyncio.run(_offer(made.fronts, headers))
    allowed = PER_MINUTE / 60 * took
    print(
        f"{PER_MINUTE} requests a minute, {OFFERED:g} times as many offered for {took:.0f} s, {BUSY_SHARE:.0%} at one "
        f"of two fronts: {sum(admitted.values())} admitted, {sum(admitted.values()) / allowed:.3f} of what is allowed "
        f"({admitted[0]} and {admitted[1]})"
    )


def _key(gateway: Gateway, **limits: int) -> dict[str, str]:
    created: dict[str, Any] = gateway.create_key(name="limited", scopes=["infer"], limits=limits)
    return {"authorization": f"Bearer {created['key']}"}


async def _offer(fronts: list[str], headers: dict[str, str]) -> tuple[Counter[int], float]:
    """How many requests each front has let in once the full bucket was emptied, and in how many seconds."""
    admitted: Counter[int] = Counter()
    async with aiohttp.ClientSession(headers=headers) as http:
        for front in fronts:
            await _until(http, front, lambda status: status != 401)
        while 429 not in [each[0] for each in await asyncio.gather(*_many(http, fronts[0]))]:
            continue

        async def ask(number: int) -> None:
            front = 0 if number % 100 < 100 * BUSY_SHARE else 1
            status, _ = await complete(http, fronts[front], "limited", tokens=1)
            assert status in (200, 429), status
            admitted[front] += status == 200 and time.perf_counter() < began + MEASURED_S

        asked, began = [], time.perf_counter()
        while (now := time.perf_counter() - began) < MEASURED_S:
            due = int(now * OFFERED * PER_MINUTE / 60)
            asked += [asyncio.create_task(ask(number)) for number in range(len(asked), due)]
            await asyncio.sleep(0.01)
        await asyncio.gather(*asked)
        return admitted, MEASURED_S


def _many(http: aiohttp.ClientSession, front: str) -> list[Any]:
    return [complete(http, front, "limited", tokens=1) for _ in range(100)]


async def _hold(http: aiohttp.ClientSession, front: str) -> None:
    """A long answer, once there is a place for it: the gateway may not know yet that the last request is over."""
    while (await complete(http, front, "limited", HELD_TOKENS))[0] == 429:
        continue


async def _until(http: aiohttp.ClientSession, front: str, is_it: Callable[[int], bool]) -> None:
    """Ask a front until it answers so."""
    while not is_it((await complete(http, front, "limited", tokens=1))[0]):  # noqa: ASYNC110 (a state of another process)
        await asyncio.sleep(0.05)


def _killed(made: Installation) -> float:
    """Kill the front that has a key's only place; returns after how long the other one gets it, s."""
    headers, front = _key(made.cluster.gateway, concurrent=1), made.cluster.fronts[0]
    seconds = asyncio.run(_until_free(made.fronts, headers, front))
    front.start()
    until(lambda: is_ready(front.port), front)
    return seconds


async def _until_free(fronts: list[str], headers: dict[str, str], front: Process) -> float:
    async with aiohttp.ClientSession(headers=headers) as http:
        for each in fronts:
            await _until(http, each, lambda status: status != 401)
        held = asyncio.create_task(_hold(http, fronts[0]))
        await _until(http, fronts[1], lambda status: status == 429)
        await asyncio.to_thread(front.kill)
        killed = time.perf_counter()
        await _until(http, fronts[1], lambda status: status == 200)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        return time.perf_counter() - killed
