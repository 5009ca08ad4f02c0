"""Where Hatrack's time goes in the gateway benchmark, by what each part is for.

    .venv/bin/python -m loadtests.gateway.profile
    .venv/bin/python -m loadtests.gateway.profile --tokens 64

`hatrack serve` runs as in the benchmark at saturation and samples its own stack by its CPU time (`sampler/`). Each
sample counts for the part of the innermost frame that belongs to one; system calls count for the part that made them.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from loadtests.gateway.cells import Bench
from loadtests.gateway.contenders import REPO, Contender, Failed, Place
from loadtests.gateway.driver import Load
from loadtests.gateway.hatrack import hatrack
from loadtests.gateway.run import GATEWAY_CORE, LOAD_CORE, start_upstream

WRITE_TIMEOUT_S = 10.0
REST = "event loop"
PARTS: tuple[tuple[str, str], ...] = (
    ("log line", r"service/telemetry/logs|logging/__init__|LogAccount"),
    (
        "checks of the body",
        r"service/inference/(fields|messages|values|length)|service/http/(checks|json_text)|"
        r"service/(admission/estimate|structured/)|Dispatch\._payload",
    ),
    ("admission", r"service/admission/|service/engine/(residency|prefetch)|Dispatch\._enter|_admission_request"),
    ("limits", r"service/access/(limits|buckets)"),
    ("usage and budgets", r"service/usage/|service/costs/|service/engine/busy"),
    ("metrics", r"service/telemetry/"),
    ("key", r"service/access/|hmac\.py"),
    ("model's name", r"service/registry/|adapters/names|inference/sticky"),
    ("HTTP to the engine", r"service/http/http1|service/engine/|service/inference/calls"),
    ("deadlines and watch on the client", r"asyncio/timeouts|RequestScope\.|create_task"),
    ("HTTP server", r"uvicorn/|service/server/|service/inference/exchange"),
    ("the rest of the data path", r"service/"),
)
"""Each part with the frames that belong to it: `function (file)`."""
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in PARTS)


def part_of(stack: Iterable[str]) -> str:
    """The part to which a stack belongs; the innermost frame comes last."""
    for frame in reversed(list(stack)):
        for name, pattern in _PATTERNS:
            if pattern.search(frame):
                return name
    return REST


def shares(raw: str) -> dict[str, float]:
    """Each part's share of the event loop's samples, from lines of `frame;frame;… count`."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if "Server.run" in stack:  # the other threads wait
            # the server's own frames are in every stack: only what it called counts
            found[part_of(stack.rpartition("Runner.run")[2].split(";"))] += int(count)
    total = found.total()
    return {name: count / total for name, count in found.most_common()}


def sampled(contender: Contender, bench: Bench, load: Load, out: Path) -> str:
    """The stacks of the gateway under a load, as lines. Raises Failed where none were written."""
    pid = contender.server.pid
    os.kill(pid, signal.SIGUSR1)
    bench.cell(contender, load, "saturation", 1, 0.0)
    os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + WRITE_TIMEOUT_S
    while not out.exists():
        if time.monotonic() > deadline:
            raise Failed("the gateway wrote no samples")
        time.sleep(0.05)
    return out.read_text()


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=0, help="stream so many tokens; 0: no streams")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-profile-") as work, ExitStack() as stack:
        upstream = start_upstream(Path(work), stack)
        contender = hatrack(Place(Path(work), upstream.url, GATEWAY_CORE))
        server, out = contender.server, Path(work) / "stacks"
        server.environment = {
            **server.environment,
            "PYTHONPATH": f"{Path(__file__).parent / 'sampler'}{os.pathsep}{REPO}",
            "GATEWAY_PROFILE": str(out),
        }
        stack.callback(server.stop)
        server.start()
        contender.prepare(contender)
        bench = Bench(upstream, LOAD_CORE, chosen.seconds)
        load = Load(0, chosen.connections, chosen.seconds, tokens=chosen.tokens)
        alone = bench.cell(contender, load, "saturation", 0, 0.0)
        found = shares(sampled(contender, bench, load, out))
    cost = (alone.cpu_us_per_token if chosen.tokens else alone.cpu_us_per_answer) or 0.0
    print(
        f"{alone.answers_per_s:,.0f} answers/s, {cost:.1f} µs of CPU for each {'chunk' if chosen.tokens else 'answer'}"
    )
    print("\n| part | share | µs |\n|---|---:|---:|")
    for name, share in found.items():
        print(f"| {name} | {share:.0%} | {share * cost:.1f} |")


if __name__ == "__main__":
    main()
