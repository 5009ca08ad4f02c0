"""Tokens per second through a running gateway: base, one adapter, all models mixed.

    make up                                  # in another terminal
    .venv/bin/python loadtests/voices.py     # HATRACK_URL and HATRACK_KEY as for the `hatrack` command

Each case sends the same number of chat requests of a fixed answer length over a fixed number of connections, twice; the
better of both runs counts. Times to the first token are in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import openai

from service.client import HatrackClient
from service.client.settings import ClientSettings

QUESTION = "Where is my parcel? It should have been here by now."


async def one(client: openai.AsyncOpenAI, model: str, tokens: int) -> float:
    """One streamed answer of exactly ``tokens`` tokens; the time to its first token, ms."""
    started, first = time.perf_counter(), 0.0
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _chunk in stream:
        first = first or (time.perf_counter() - started) * 1000
    return first


async def measure(client: openai.AsyncOpenAI, models: list[str], connections: int, requests: int, tokens: int) -> dict:
    """All requests of one case, models in turn."""
    gate = asyncio.Semaphore(connections)

    async def held(model: str) -> float:
        async with gate:
            return await one(client, model, tokens)

    started = time.perf_counter()
    firsts = await asyncio.gather(*(held(models[index % len(models)]) for index in range(requests)))
    seconds = time.perf_counter() - started
    return {
        "tokens_per_s": round(requests * tokens / seconds, 1),
        "first_token_ms_p50": round(statistics.median(firsts)),
        "first_token_ms_max": round(max(firsts)),
    }


async def main() -> None:
    """Run all cases and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    with HatrackClient() as control:
        url, key = control.url, ClientSettings().gateway_key(control.url)
        models = [model["id"] for model in control.models.list()]
    cases = {"base": models[:1], "one adapter": models[1:2], "base and all adapters": models}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=600) as client:
        for model in models:
            await one(client, model, 4)  # everything is loaded before the clock starts
        for name, chosen in cases.items():
            runs = [
                await measure(client, chosen, arguments.connections, arguments.requests, arguments.tokens)
                for _ in range(2)
            ]
            best = max(runs, key=lambda run: run["tokens_per_s"])
            print(json.dumps({"case": name, "models": len(chosen), **best}))


if __name__ == "__main__":
    asyncio.run(main())
