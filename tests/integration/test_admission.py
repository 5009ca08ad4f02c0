"""Admission control in front of the real engine: a flood, a full queue, and clients that leave while they wait."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import TIMEOUT, Gateway

FLOOD = 64
LONG = 1500
"""Tokens of an answer that is not over while the callers after it still arrive, be they slow about it."""
OVERLONG = 700
"""More than one key may have waiting (half of 1024) and in the engine together."""
WITHIN_S = 600.0
LENGTHS = (80, 200, 500)
"""Tokens of an answer in the flood: the longer, the slower a machine may be about the callers after it."""


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    ) as session:
        yield session


def make_key(gateway: Gateway, name: str) -> str:
    return str(gateway.create_key(name=name, scopes=["infer"])["key"])


async def ask(
    client: aiohttp.ClientSession, gateway: Gateway, key: str, model: str, tokens: int
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Exactly ``tokens`` tokens: status, headers and body."""
    body = {"model": model, "prompt": "Where is my parcel?", "max_tokens": tokens, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    async with client.post(f"{gateway.url}/v1/completions", json=body, headers=headers) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.json()


async def admission_metrics(gateway: Gateway) -> dict[str, float]:
    """The admission metrics of `/metrics`, both classes added up."""
    async with httpx.AsyncClient(timeout=TIMEOUT) as http:
        text = (await http.get(f"{gateway.url}/metrics", headers={"authorization": f"Bearer {gateway.key}"})).text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("hatrack_admission_"):
                name = sample.name.removeprefix("hatrack_admission_")
                totals[name] = totals.get(name, 0.0) + sample.value
    return totals


async def wait_until_metrics(gateway: Gateway, **bounds: tuple[float, float]) -> None:
    """Wait until each of these figures lies between its two bounds."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            now = await admission_metrics(gateway)
            # what is late is missing from a scrape
            if all(name in now and low <= now[name] <= high for name, (low, high) in bounds.items()):
                return
            await asyncio.sleep(0.1)


async def load(client: aiohttp.ClientSession, gateway: Gateway) -> dict[str, int]:
    """How many requests wait, and how many are in the engine."""
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with client.get(f"{gateway.url}/v1/load", headers=headers) as response:
        counts: dict[str, int] = await response.json()
        return counts


async def wait_until_queued(client: aiohttp.ClientSession, gateway: Gateway, low: int, high: int) -> None:
    """Wait until so many of the callers wait.

    Asks for the load: what `/metrics` says may be a second old, and by then the queue of a quick machine is short.
    """
    async with asyncio.timeout(WITHIN_S):
        while True:
            now = await load(client, gateway)
            if low <= now["waiting"] <= high:
                return
            await asyncio.sleep(0.02)


async def wait_until_answered(tasks: list[asyncio.Task[Any]], count: int) -> list[Any]:
    """The results of those that are done, once there are `count`: answers may still be on their way."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            results = [task.result() for task in tasks if task.done()]
            if len(results) >= count:
                return results
            await asyncio.sleep(0.02)


async def wait_until_all_arrived(
    client: aiohttp.ClientSession, gateway: Gateway, flood: list[asyncio.Task[Any]]
) -> None:
    """Wait until the whole flood waits or is in the engine, or some of it has been answered already."""
    async with asyncio.timeout(WITHIN_S):
        while not any(task.done() for task in flood):
            now = await load(client, gateway)
            if now["waiting"] + now["in_flight"] >= FLOOD:
                return
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_flood_of_one_key_does_not_starve_another(gateway: Gateway, client: aiohttp.ClientSession) -> None:
    """Four requests that come after 64 are answered before most of these.

    The four may be slow to come, and the engine quick: then the same is asked with longer answers. Whoever is served
    first come, first served, waits for most of the 64 however long they take.
    """
    flooding, other = make_key(gateway, "flood"), make_key(gateway, "other")
    for tokens in LENGTHS:
        flood = [asyncio.create_task(ask(client, gateway, flooding, "tidewater", tokens)) for _ in range(FLOOD)]
        await wait_until_all_arrived(client, gateway, flood)
        others = [asyncio.create_task(ask(client, gateway, other, "pemberton", 16)) for _ in range(4)]
        assert [status for status, _, _ in await asyncio.gather(*others)] == [200] * 4
        flooded_before = sum(task.done() for task in flood)
        assert [status for status, _, _ in await asyncio.gather(*flood)] == [200] * FLOOD
        if flooded_before <= FLOOD * 0.6:
            return
    pytest.fail("the four were answered only after most of the 64 that came before them")


async def test_an_over_long_queue_refuses_and_clients_that_leave_make_room(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    greedy, other = make_key(gateway, "greedy"), make_key(gateway, "patient")
    before = await admission_metrics(gateway)
    waiting = [asyncio.create_task(ask(client, gateway, greedy, "tidewater", LONG)) for _ in range(OVERLONG)]
    waiting_more: list[asyncio.Task[Any]] = []
    try:
        await wait_until_queued(client, gateway, 512, 512)
        # more at once than the engine's places, any of which may have become free meanwhile
        more = [asyncio.create_task(ask(client, gateway, greedy, "tidewater", 1)) for _ in range(64 + 1)]
        waiting_more.extend(more)
        for answered in asyncio.as_completed(more):
            status, headers, body = await answered
            if status != 200:
                break
        assert (status, body["error"]["code"]) == (429, "queue_share_full")
        assert body["error"]["type"] == "rate_limit_error"
        assert 1 <= int(headers["retry-after"]) <= 60
        # what is over the bound is refused: all but what waits, is in the engine, or has been answered already
        answers = await wait_until_answered(waiting, OVERLONG - 512 - 64)
        refused = [body["error"]["code"] for status, _, body in answers if status != 200]
        assert set(refused) == {"queue_share_full"}
        await wait_until_metrics(gateway, refused_total=(before["refused_total"] + len(refused), math.inf))
    finally:
        for task in waiting + waiting_more:
            task.cancel()
        await asyncio.gather(*waiting, *waiting_more, return_exceptions=True)
    await wait_until_metrics(gateway, queued=(0, 0), in_engine=(0, 0), adapters_waiting=(0, 0))
    status, _, _ = await ask(client, gateway, other, "pemberton", 4)
    assert status == 200


@pytest.mark.slow
async def test_an_upload_is_proven_beside_a_flood(gateway: Gateway, client: aiohttp.ClientSession) -> None:
    """Proofs yield to callers, but they are not starved by them."""
    flooding = make_key(gateway, "flood")
    # of different lengths: where all end at once a slow engine frees no place for longer than a warming waits
    lengths = [20 + 4 * at for at in range(FLOOD)]
    flood = [asyncio.create_task(ask(client, gateway, flooding, "tidewater", length)) for length in lengths]
    try:
        await wait_until_queued(client, gateway, 30, FLOOD)
        granted = (await admission_metrics(gateway))["granted_total"]
        with gateway.http() as http:
            moved = await asyncio.to_thread(
                http.put, "/v1/adapters/pemberton/aliases/beside-a-flood", json={"version": 1}
            )
        assert moved.status_code in (200, 201), moved.text
        assert not all(task.done() for task in flood), "the flood was over before the warming was let in"
        await wait_until_metrics(gateway, granted_total=(granted + 1, math.inf))
    finally:
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        with gateway.http() as http:
            http.delete("/v1/adapters/pemberton/aliases/beside-a-flood")
