"""The engine beside plain vLLM: the same base, adapters, flags and prompts, one after the other on this machine.

    .venv/bin/python -m loadtests.engine            # three rounds
    .venv/bin/python -m loadtests.engine --quick    # one round, 32 adapters, fewer prompts

A round starts plain vLLM (`VLLM_PLUGINS=none`, adapters given by `--lora-modules`), measures it and ends it, and does
the same with `hatrack serve`, which is asked as its users ask it: with a key, through admission and accounting. They
never run at the same time. Both have the flags that Hatrack gives its engine, and random adapters of rank 16 on all
linear layers; the prompts are random words, so that no prefix cache serves any. Prints a table of the rounds' medians
and draws it (``engine.svg`` beside ``engine.json``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp

from loadtests import chart
from loadtests.support import (
    KEY,
    READY_S,
    STOP_S,
    Running,
    Timing,
    free_port,
    gateway,
    percentile,
    prompt,
    push,
    session,
    stream,
    write_json,
)
from service.config import Settings
from service.engine.config import EngineConfig
from tests.support.adapters import describe_base, make_adapter

REPO: Final = Path(__file__).resolve().parents[1]
BASE: Final = REPO / "var" / "base" / "smollm2-135m-instruct"
SIDES: Final = ("plain vLLM", "Hatrack")
STREAMS: Final = 16
TOKENS: Final = 64
WORDS: Final = 24
"""Words of a prompt, about 1.3 tokens each."""
PREFILL_WORDS: Final = 900
RANK: Final = 16
SLOTS: Final = 8
MOST_RESIDENT: Final = 256
LINEAR: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEAK: Final = 0.002
"""Standard deviation of lora_B: what training moves; the weights cost the same whatever they are."""
SEED: Final = 12
SPEED, FIRST = "tokens/s", "p99 to the first token, s"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    adapters: int
    """Of the last case; at least 8."""
    batches: int
    """Rounds of 16 streams in each case."""
    prefills: int
    zipf_requests: int
    zipf_tokens: int


FULL: Final = Size(adapters=128, batches=4, prefills=6, zipf_requests=256, zipf_tokens=32)
QUICK: Final = Size(adapters=32, batches=1, prefills=2, zipf_requests=64, zipf_tokens=16)


@dataclass(frozen=True)
class Request:
    """One completion: which adapter (None: the base), its prompt, and how many tokens it is to have."""

    adapter: int | None
    text: str
    tokens: int


@dataclass(frozen=True)
class Server:
    """One that runs: where, and the models that the base and the adapters are asked as."""

    url: str
    base: str
    adapters: Sequence[str]

    def model(self, adapter: int | None) -> str:
        return self.base if adapter is None else self.adapters[adapter]


def zipf(adapters: int, requests: int, rng: random.Random) -> list[int]:
    """Which adapter each request is for: the k-th most popular one with a weight of 1/k."""
    return rng.choices(range(adapters), [1 / rank for rank in range(1, adapters + 1)], k=requests)


def decoding(size: Size) -> dict[str, list[Request]]:
    """The cases of 16 streams, by name; the same each time."""
    turns: dict[str, list[int | None]] = {
        "base": [None],
        "one adapter": [0],
        "eight adapters": list(range(SLOTS)),
        "half base, half eight adapters": [turn // 2 if turn % 2 else None for turn in range(STREAMS)],
    }
    rng = random.Random(SEED)
    return {
        name: [Request(turn[at % len(turn)], prompt(WORDS, rng), TOKENS) for at in range(STREAMS * size.batches)]
        for name, turn in turns.items()
    }


def popular(size: Size) -> list[Request]:
    """The requests of the case with more adapters than slots."""
    rng = random.Random(SEED)
    chosen = zipf(size.adapters, size.zipf_requests, rng)
    return [Request(adapter, prompt(WORDS, rng), size.zipf_tokens) for adapter in chosen]


async def load(client: aiohttp.ClientSession, server: Server, requests: Sequence[Request]) -> dict[str, float]:
    """Send the requests in their order over 16 connections; tokens/s over all of it, and the p99 to the first token.

    Raises:
        RuntimeError: One was not answered in full.
    """
    left = iter(requests)
    timings: list[Timing] = []

    async def connection() -> None:
        for request in left:
            timing = Timing(server.model(request.adapter), time.perf_counter())
            await stream(client, server.url, timing, request.text, request.tokens)
            if (timing.status, timing.tokens) != (200, request.tokens):
                raise RuntimeError(
                    f"{timing.model}: status {timing.status}, {timing.tokens} of {request.tokens} tokens"
                )
            timings.append(timing)

    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(connection())
    span = max(timing.end for timing in timings) - min(timing.sent for timing in timings)
    first_s = percentile([timing.ttft_ms for timing in timings], 0.99) / 1000
    return {SPEED: sum(timing.tokens for timing in timings) / span, FIRST: first_s}


async def prefill(client: aiohttp.ClientSession, server: Server, adapter: int | None, count: int) -> float:
    """Tokens/s of long prompts, one after the other, each answered with one token."""
    rng, tokens, seconds = random.Random(SEED), 0, 0.0
    for _ in range(count):
        body = {"model": server.model(adapter), "prompt": prompt(PREFILL_WORDS, rng), "max_tokens": 1}
        began = time.perf_counter()
        async with client.post(
            f"{server.url}/v1/completions", json=body, headers={"authorization": f"Bearer {KEY}"}
        ) as response:
            answer = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{body['model']}: {response.status} {answer}")
        seconds += time.perf_counter() - began
        tokens += answer["usage"]["prompt_tokens"]
    return tokens / seconds


async def measure(server: Server, size: Size) -> dict[str, float]:
    """All cases of one server, by name."""
    found: dict[str, float] = {}
    async with session() as client:
        rng = random.Random(SEED)
        warm = [Request(adapter, prompt(WORDS, rng), 8) for adapter in (None, *range(SLOTS)) for _ in range(2)]
        await load(client, server, warm)  # the kernels are compiled and the adapters loaded before the clock starts
        for name, requests in decoding(size).items():
            found[name] = (await load(client, server, requests))[SPEED]
            _log(f"    {name}: {found[name]:.0f} tokens/s")
        for name, adapter in (("base", None), ("one adapter", 0)):
            case = f"prefill of {PREFILL_WORDS} words, {name}"
            found[case] = await prefill(client, server, adapter, size.prefills)
            _log(f"    {case}: {found[case]:.0f} tokens/s")
        case = zipf_name(size)
        both = await load(client, server, popular(size))
        found |= {case: both[SPEED], f"{case}: {FIRST}": both[FIRST]}
        _log(f"    {case}: {both}")
    return found


def zipf_name(size: Size) -> str:
    """The case with more adapters than slots."""
    return f"Zipf over {size.adapters} adapters, {SLOTS} slots"


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each case."""
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def table(plain: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]) -> str:
    """Markdown: a line for each case, with how many times as good ours is (as fast, or as short a wait)."""
    lines = [f"| tokens/s | {SIDES[0]} | {SIDES[1]} | |", "|---|---:|---:|---:|"]
    theirs, mine = medians(plain), medians(ours)
    for name in theirs:
        shorter = name.endswith(FIRST)
        ratio = theirs[name] / mine[name] if shorter else mine[name] / theirs[name]
        figure = (lambda value: f"{value:.1f} s") if shorter else (lambda value: f"{value:,.0f}")
        label = name.removesuffix(", s")
        lines.append(f"| {label} | {figure(theirs[name])} | {figure(mine[name])} | {ratio:.1f}× |")
    return "\n".join(lines)


def drawing(plain: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]) -> str:
    """The same as an SVG."""
    theirs, mine = medians(plain), medians(ours)
    rows = {name: [theirs[name], mine[name]] for name in theirs}
    return chart.draw(
        "One engine, many adapters: tokens/s",
        f"the same base, adapters and flags; {os.cpu_count()} cores, {STREAMS} streams",
        chart.panels(rows, SIDES, lambda name: name.endswith(FIRST)),
    )


def resident(adapters: int) -> int:
    """How many of them an engine keeps in memory, slots included."""
    return max(min(adapters, MOST_RESIDENT), 2 * SLOTS)


def settings(home: Path, base: Path, adapters: int) -> dict[str, str]:
    """Hatrack's, where they are not its defaults; the flags of both engines follow from them."""
    return {
        "HATRACK_ENGINE_SLOTS": str(SLOTS),
        "HATRACK_ENGINE_RESIDENT": str(resident(adapters)),
        "HATRACK_ENGINE_MAX_RANK": str(RANK),
        "HATRACK_HOME": str(home),
        "HATRACK_BASE_MODEL": str(base),
    }


def engine_config(home: Path, base: Path, adapters: int) -> EngineConfig:
    """How Hatrack starts its engine under these settings."""
    given: dict[str, Any] = {
        name.removeprefix("HATRACK_").lower(): value for name, value in settings(home, base, adapters).items()
    }
    return EngineConfig.from_settings(Settings(**given))


def plain_command(config: EngineConfig, port: int, adapters: Sequence[Path]) -> list[str]:
    """Plain vLLM with our flags, listening on a port."""
    modules = [f"{directory.name}={directory}" for directory in adapters]
    return [*config.argv(["--host", "127.0.0.1", "--port", str(port)]), "--lora-modules", *modules]


def plain_environment(config: EngineConfig) -> dict[str, str]:
    """The environment of our engine without our plugin."""
    ours = config.environment("", os.environ)
    kept = {name: value for name, value in ours.items() if not name.startswith("HATRACK_")}
    dropped = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_COMPUTE_NANS_IN_LOGITS", "VLLM_PROCESS_NAME_PREFIX"}
    return {name: value for name, value in kept.items() if name not in dropped} | {"VLLM_PLUGINS": "none"}


@contextmanager
def plain_vllm(home: Path, base: Path, adapters: Sequence[Path]) -> Iterator[Server]:
    """Start it, wait until it answers, and end all its processes at the end.

    Raises:
        RuntimeError: It ended by itself; the message has the end of its log.
        TimeoutError: It was not there in time.
    """
    home.mkdir(parents=True, exist_ok=True)
    config = engine_config(home, base, len(adapters))
    port, log = free_port(), home / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            plain_command(config, port, adapters),
            env=plain_environment(config),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", config.base_name, [directory.name for directory in adapters])
    try:
        asyncio.run(_ready(process, server, log))
        yield server
    finally:
        with suppress(ProcessLookupError):  # else this would hide why it ended by itself
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        finally:
            _end_group(process.pid)


def _end_group(leader: int) -> None:
    """What is left of a session whose leader has gone: vLLM's children may outlive it."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


async def _ready(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    async with asyncio.timeout(2 * READY_S), session() as client:
        while process.poll() is None:
            try:
                async with client.get(f"{server.url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
    raise RuntimeError(f"vLLM ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def hatrack(
    home: Path,
    base: Path,
    adapters: Sequence[Path],
    checkout: Path | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """Start it (or, with ``checkout``, the version there; with ``more`` settings), and push the adapters that it does
    not have yet."""
    running: Running
    with gateway(home, base, {**settings(home, base, len(adapters)), **more}, checkout=checkout) as running:
        push(running, list(adapters))
        served = engine_config(home, base, len(adapters)).base_name
        yield Server(running.url, served, [directory.name for directory in adapters])


def random_adapters(base: Path, out: Path, count: int) -> list[Path]:
    """``count`` directories as PEFT writes them, made where they are not there yet."""
    description = describe_base(base)
    made = [out / f"voice-{number:03d}" for number in range(count)]
    for number, directory in enumerate(made):
        if not (directory / "adapter_config.json").exists():
            make_adapter(
                directory, description, rank=RANK, alpha=RANK, scale=WEAK, seed=number, modules=LINEAR, dtype="BF16"
            )
    return made


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, 32 adapters, fewer prompts")
    parser.add_argument("--rounds", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--out", type=Path, default=REPO / "var" / "loadtests" / "engine")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    base = arguments.base.resolve()
    adapters = random_adapters(base, arguments.out / "adapters", size.adapters)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(arguments.rounds or (1 if arguments.quick else 3)):
        for side, start in zip(SIDES, (plain_vllm, hatrack), strict=True):
            _log(f"round {turn + 1}: {side}")
            with start(arguments.out / side.replace(" ", "-").lower(), base, adapters) as server:
                found[side].append(asyncio.run(measure(server, size)))
            result: dict[str, Any] = {"size": asdict(size), "load_average": os.getloadavg(), "rounds": found}
            write_json(arguments.out / "engine.json", result)
    both = found[SIDES[0]], found[SIDES[1]]
    (arguments.out / "engine.svg").write_text(drawing(*both))
    print(table(*both))
    _log(json.dumps({"load_average": os.getloadavg(), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
