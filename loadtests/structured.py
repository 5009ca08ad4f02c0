"""What a neighbour waits for beside another tenant's structured outputs, and what a schema costs its own caller.

.venv/bin/python -m loadtests.structured [--seconds 60]

One real gateway with its engine. A neighbour chats without a pause; beside it, another project sends plain requests,
then specifications made to be dear (refused ones, and the dearest ones that pass), four at once, each of them new.
Needs the prepared base model (`make setup`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from loadtests.support import KEY, gateway, percentile, session

BASE = Path("var/base/smollm2-135m-instruct")
ATTACKERS = 4
COLD = 12

Body = dict[str, Any]


def plain() -> Iterator[Body]:
    """No structured output at all."""
    while True:
        yield {}


def refused() -> Iterator[Body]:
    """The expressions that stopped an engine, in each of their forms, and grammars that do."""
    for n in itertools.count():
        tail = f"{n:x}"
        ways = "(" + "|".join(f"[a-z]{{{k}}}.{{1,{k}}}" for k in range(1, 6 + n % 20)) + ")+" + tail
        yield regex(ways)
        yield schema({"type": "string", "pattern": ways})
        yield {"tools": [tool({"properties": {"a": {"type": "string", "pattern": ways}}})], "tool_choice": "required"}
        yield {"structured_outputs": {"grammar": f'root ::= s "{tail}"\ns ::= s s | [a-z]\n'}}
        yield regex(f"x{tail}([a-z]{{1,20}}.{{1,20}})y")
        yield schema({"type": "string", "pattern": f"^.{{0,200}}{tail}$"})


def passing() -> Iterator[Body]:
    """Dear, and allowed: long counts, wide alternatives, many choices."""
    for n in itertools.count():
        yield schema({"type": "object", "properties": {f"a{n}": {"type": "string", "maxLength": 20 + n % 40}}})
        yield regex(f"[a-z ]{{1,{20 + n % 40}}}{n:x}")
        yield {"structured_outputs": {"choice": [f"{n} {k}" for k in range(1500)]}}
        yield schema({"anyOf": [{"type": "object", "properties": {f"k{n}{k}": {}}} for k in range(60)]})


def regex(pattern: str) -> Body:
    return {"structured_outputs": {"regex": pattern}}


def schema(value: Body) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}}


def tool(parameters: Body) -> Body:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", **parameters}}}


async def chat(client: aiohttp.ClientSession, url: str, key: str, tokens: int, more: Body) -> tuple[float, int]:
    """One answer: seconds until it is whole, and the status."""
    body = {"model": BASE.name, "messages": [{"role": "user", "content": "Tell me of the sea."}], "max_tokens": tokens}
    began = time.perf_counter()
    headers = {"authorization": f"Bearer {key}"}
    async with client.post(f"{url}/v1/chat/completions", json=body | more, headers=headers) as response:
        await response.read()
        return time.perf_counter() - began, response.status


async def beside(url: str, keys: tuple[str, str], bodies: Callable[[], Iterator[Body]] | None, seconds: float) -> None:
    """Measure the neighbour's answers beside an attacker's requests, and print them."""
    waits: list[float] = []
    statuses: Counter[int] = Counter()
    end = time.perf_counter() + seconds
    async with session() as client:

        async def attack(stream: Iterator[Body]) -> None:
            while time.perf_counter() < end:
                _, status = await chat(client, url, keys[1], 24, next(stream))
                statuses[status] += 1

        stream = bodies() if bodies else iter(())
        attackers = [asyncio.create_task(attack(stream)) for _ in range(ATTACKERS if bodies else 0)]
        while time.perf_counter() < end:
            waits.append((await chat(client, url, keys[0], 24, {"ignore_eos": True, "temperature": 0}))[0] * 1000)
        for task in attackers:
            task.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)
    name = bodies.__name__ if bodies else "alone"
    print(
        f"{name:10} neighbour: {len(waits):4} answers, median {statistics.median(waits):6.0f} ms, "
        f"p95 {percentile(waits, 0.95):6.0f} ms, longest {max(waits):6.0f} ms; the other's: {dict(statuses)}",
        flush=True,
    )


async def honest(url: str, key: str) -> None:
    """What a new schema adds to a request of one token, and one that is known."""
    added: dict[str, list[float]] = {"plain": [], "new": [], "known": []}
    async with session() as client:
        for n in range(COLD):
            properties = {f"name{n}": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["a", "b"]}}
            body = schema({"type": "object", "properties": properties, "required": ["age"]})
            for name, more in (("plain", {}), ("new", body), ("known", body)):
                added[name].append((await chat(client, url, key, 1, more))[0] * 1000)
    base = statistics.median(added["plain"])
    for name in ("new", "known"):
        print(
            f"{name:5} schema: {statistics.median(added[name]) - base:+6.1f} ms (median; plain {base:.1f} ms)",
            flush=True,
        )


def make_key(url: str, project: str) -> str:
    """A key of a project of its own that may only infer."""
    asked = {"name": project, "project": project}
    answer = httpx.post(f"{url}/v1/keys", json=asked, headers={"authorization": f"Bearer {KEY}"}, timeout=30)
    return str(answer.raise_for_status().json()["key"])


def main() -> None:
    """Start a gateway, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="Length of each measurement.")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as home, gateway(Path(home), BASE, {"HATRACK_SAMPLES": "false"}) as running:
        keys = make_key(running.url, "neighbour"), make_key(running.url, "attacker")
        asyncio.run(honest(running.url, keys[0]))
        for bodies in (None, plain, refused, passing, plain):
            asyncio.run(beside(running.url, keys, bodies, seconds))


if __name__ == "__main__":
    main()
