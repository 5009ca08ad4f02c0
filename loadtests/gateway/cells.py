"""One measurement at a time: a load of one kind on one gateway, and the same load on the engine without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import httpx

from loadtests.gateway.contenders import REPO, Contender, Failed, Server
from loadtests.gateway.driver import Load
from loadtests.gateway.peers import ENGINE_MODEL

Phase = Literal["saturation", "long", "half", "direct"]
"""Saturation with short bodies, and with long ones (not streamed); half of the former; that without the gateway."""
LONG_BYTES = 10_000
"""Length of the user's message in a long body."""
TOKENS = 64
STEPS_PER_S = 16_000
"""Tokens a second that a paced run offers, all streams together: about half of what a fast gateway in Python relays."""
NOISY_CORES = 0.15
"""A run in which the rest of the machine used more than this many cores is repeated …"""
REPEATS = 2
"""… this often at most."""
DRIVER_TIMEOUT_S = 120.0
DRIVER_START_S = 0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement. Latencies in ms, CPU in µs; None where there is nothing to say."""

    contender: str
    round: int
    stream: bool
    connections: int
    phase: Phase
    offered: float
    """Half load: requests a second, or for streams the milliseconds between two tokens of one."""
    answers_per_s: float
    tokens_per_s: float
    latency_ms: tuple[float, float] | None
    """p50 and p99."""
    first_ms: tuple[float, float] | None
    cpu_us_per_answer: float | None
    cpu_us_per_token: float | None
    gateway_cores: float
    load_cores: float
    """What engine and driver used of the one core that they share."""
    other_cores: float
    samples: int
    errors: int
    first_error: str


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of ``values`` do not exceed (nearest rank). ``values`` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-int(share * 1e6) * len(ordered) // 1_000_000) - 1))]


class Bench:
    """Measures contenders in front of one fake engine."""

    def __init__(self, upstream: Server, core: int, seconds: float) -> None:
        self._upstream = upstream
        self._core = core
        self._seconds = seconds
        self.cells: list[Cell] = []

    def measure(self, contender: Contender, connections: int, stream: bool, number: int) -> None:
        """Saturation (unless streamed with long bodies, too), half of it, and the engine alone under the same load."""
        print(f"  {contender.name}, {connections} connections{', streams' if stream else ''}", file=sys.stderr)
        tokens = TOKENS if stream else 0
        load = Load(0, connections, self._seconds, tokens=tokens, seed=number + 1)
        self._pace(0)
        full = self.cell(contender, load, "saturation", number, 0.0)
        if not stream:
            self.cell(contender, replace(load, message_bytes=LONG_BYTES), "long", number, 0.0)
        half: Load | None
        if stream:
            half, offered = self._paced(load, full.tokens_per_s)
        else:
            half, offered = replace(load, rate=full.answers_per_s / 2), full.answers_per_s / 2
        if half is None or full.errors or not offered:
            return
        self.cell(contender, half, "half", number, offered)
        self.cell(contender, half, "direct", number, offered)

    def _paced(self, load: Load, most: float) -> tuple[Load | None, float]:
        """Streams whose tokens come in steps, not more than half of what the gateway relays at most."""
        step_s = max(1.0, round(1000 * load.connections / min(STEPS_PER_S, max(1.0, most / 2)))) / 1000
        stream_s = step_s * TOKENS
        if stream_s > 2.5:
            return None, 0.0  # one stream would outlast the run
        self._pace(step_s * 1000)
        seconds = max(self._seconds, stream_s * 1.5)
        return replace(load, seconds=seconds, spread_s=stream_s, warmup_s=stream_s + 0.3), step_s * 1000

    def _pace(self, milliseconds: float) -> None:
        httpx.put(f"{self._upstream.url}/pace/{milliseconds:g}", timeout=5, trust_env=False).raise_for_status()

    def cell(self, contender: Contender, load: Load, phase: Phase, number: int, offered: float) -> Cell:
        """One measurement, again where the machine was busy with something else."""
        for _ in range(REPEATS + 1):
            seen = self._drive(contender, load, direct=phase == "direct")
            cell = _cell(contender.name, number, load, phase, offered, seen)
            if cell.other_cores <= NOISY_CORES:
                break
        self.cells.append(cell)
        return cell

    def _drive(self, contender: Contender, load: Load, *, direct: bool) -> dict[str, Any]:
        """Run the driver as a process of its own and give back what it saw. Raises Failed."""
        server = self._upstream if direct else contender.server
        pids = {"upstream": self._upstream.pid} | ({} if direct else {"gateway": contender.server.pid})
        model, key = (ENGINE_MODEL, "none") if direct else (contender.model, contender.key)
        chosen = replace(load, port=server.port, model=model, key=key, pids=pids)
        server.wait_quiet()
        done = subprocess.run(
            ["taskset", "-c", str(self._core), sys.executable, "-m", "loadtests.gateway.driver"],
            input=json.dumps(asdict(chosen)).encode(),
            capture_output=True,
            timeout=DRIVER_TIMEOUT_S,
            check=False,
            cwd=REPO,
        )
        if done.returncode != 0:
            raise Failed(f"the driver ended with {done.returncode}:\n{done.stderr.decode()[-2000:]}")
        seen: dict[str, Any] = json.loads(done.stdout)
        return seen


def _cell(name: str, number: int, load: Load, phase: Phase, offered: float, seen: dict[str, Any]) -> Cell:
    usage = seen["usage"]
    wall_s, gateway_s = usage["wall_s"], usage["named_s"].get("gateway", 0.0)
    answers, tokens = seen["answers"], seen["tokens"]
    return Cell(
        contender=name,
        round=number,
        stream=load.tokens > 0,
        connections=load.connections,
        phase=phase,
        offered=round(offered, 2),
        answers_per_s=round(answers / wall_s, 1),
        tokens_per_s=round(tokens / wall_s, 1),
        latency_ms=_two(seen["latency_s"]),
        first_ms=_two(seen["first_s"]),
        cpu_us_per_answer=_each(gateway_s, answers),
        cpu_us_per_token=_each(gateway_s, tokens),
        gateway_cores=round(gateway_s / wall_s, 3),
        load_cores=round((usage["own_s"] + usage["named_s"]["upstream"]) / wall_s, 3),
        other_cores=round(usage["others_s"] / wall_s, 3),
        samples=len(seen["latency_s"]),
        errors=seen["errors"],
        first_error=seen["first_error"],
    )


def _two(values_s: Sequence[float]) -> tuple[float, float] | None:
    if not values_s:
        return None
    return round(percentile(values_s, 0.5) * 1000, 4), round(percentile(values_s, 0.99) * 1000, 4)


def _each(seconds: float, count: int) -> float | None:
    return round(seconds / count * 1e6, 2) if count and seconds else None
