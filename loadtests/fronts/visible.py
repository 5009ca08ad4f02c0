"""How long after its answer a promotion or a revocation is seen at each front."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import aiohttp

from loadtests.fronts.installation import HEADERS, Installation, complete

NAME = "promoted"


def measure(made: Installation, rounds: int) -> None:
    """Print percentiles over all fronts."""
    made.push(NAME, NAME)
    asyncio.run(_measure(made, rounds))


async def _measure(made: Installation, rounds: int) -> None:
    async with aiohttp.ClientSession(headers=HEADERS) as http:
        promoted = [late for number in range(rounds) for late in await _promote(made, http, 1 + number % 2)]
        revoked = [late for _ in range(rounds) for late in await _revoke(made, http)]
    for what, late in (("promotion", promoted), ("revocation", revoked)):
        cuts = statistics.quantiles(late, n=100, method="inclusive")
        print(
            f"{what}, {rounds} times at {len(made.fronts)} fronts: seen after p50 {cuts[49] * 1e3:.0f}, "
            f"p99 {cuts[98] * 1e3:.0f}, at most {max(late) * 1e3:.0f} ms"
        )


async def _promote(made: Installation, http: aiohttp.ClientSession, version: int) -> list[float]:
    async def is_seen(front: str) -> bool:
        return await complete(http, front, NAME, tokens=1) == (200, f"{NAME}@{version}")

    url = f"{made.cluster.gateway.url}/v1/adapters/{NAME}/aliases/live"
    return await _seen(made, is_seen, http.put(url, json={"version": version}))


async def _revoke(made: Installation, http: aiohttp.ClientSession) -> list[float]:
    url = f"{made.cluster.gateway.url}/v1/keys"
    async with http.post(url, json={"name": "k", "scopes": ["infer"]}) as created:
        key = await created.json()
    headers = {"authorization": f"Bearer {key['key']}"}
    async with aiohttp.ClientSession(headers=headers) as caller:

        async def answers(front: str, status: int) -> bool:
            return (await complete(caller, front, NAME, tokens=1))[0] == status

        for front in made.fronts:
            while not await answers(front, 200):
                continue
        return await _seen(made, lambda front: answers(front, 401), http.delete(f"{url}/{key['id']}"))


async def _seen(
    made: Installation, is_seen: Callable[[str], Awaitable[bool]], change: Awaitable[aiohttp.ClientResponse]
) -> list[float]:
    """Make a change; returns for each front how long after its acknowledgement a request was answered by it, s."""
    changed = await change
    assert changed.status < 300, await changed.text()
    since = time.perf_counter()

    async def late(front: str) -> float:
        while not await is_seen(front):
            continue
        return time.perf_counter() - since

    return list(await asyncio.gather(*map(late, made.fronts)))
