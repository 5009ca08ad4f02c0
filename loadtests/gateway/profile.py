"""Where Hatrack's time goes in the gateway benchmark, by what each part is for.

    pip install py-spy        # into any environment; it must be on PATH or be named
    .venv/bin/python -m loadtests.gateway.profile --py-spy /path/to/py-spy

`hatrack serve` runs as in the benchmark at saturation while py-spy samples it. Each sample counts for the part of the
innermost frame that belongs to one; what belongs to none is the event loop and the system's calls.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from loadtests.gateway.cells import Bench
from loadtests.gateway.contenders import Place
from loadtests.gateway.driver import Load
from loadtests.gateway.hatrack import hatrack
from loadtests.gateway.run import GATEWAY_CORE, LOAD_CORE, start_upstream

SAMPLES_PER_S = 500
REST = "event loop and system calls"
PARTS: tuple[tuple[str, str], ...] = (
    ("log line", r"service/telemetry/logs|logging/__init__|LogAccount"),
    ("admission", r"service/admission/|Pipeline\._enter"),
    ("limits", r"service/access/(limits|buckets)"),
    ("usage", r"service/access/usage"),
    ("metrics", r"service/telemetry/"),
    ("key", r"service/access/|hmac\.py"),
    ("model's name", r"service/registry/|adapters/names|inference/sticky"),
    ("checks of the body", r"service/inference/(fields|checks|messages|values|estimate)|Pipeline\._payload|parse \("),
    ("HTTP to the engine", r"aiohttp/|service/engine/"),
    ("deadlines and watch on the client", r"asyncio/timeouts|Leash\.|create_task"),
    ("HTTP server", r"uvicorn/"),
    ("the rest of the data path", r"service/"),
)
"""Each part with the frames that belong to it, as py-spy writes them: `function (file:line)`."""
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in PARTS)


def part_of(stack: Iterable[str]) -> str:
    """The part to which a stack belongs; the innermost frame comes last."""
    for frame in reversed(list(stack)):
        for name, pattern in _PATTERNS:
            if pattern.search(frame):
                return name
    return REST


def shares(raw: str) -> dict[str, float]:
    """Each part's share of the event loop's samples, from py-spy's raw output: `frame;frame;… count` a line."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if "Server.run" in stack:  # the other threads wait
            # the server's own frames are in every stack: only what it called counts
            found[part_of(stack.rpartition("Runner.run")[2].split(";"))] += int(count)
    total = found.total()
    return {name: count / total for name, count in found.most_common()}


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--py-spy", default="py-spy", help="the program")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=0, help="stream so many tokens; 0: no streams")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-profile-") as work, ExitStack() as stack:
        upstream = start_upstream(Path(work), stack)
        contender = hatrack(Place(Path(work), upstream.url, GATEWAY_CORE))
        stack.callback(contender.server.stop)
        contender.server.start()
        contender.prepare(contender)
        raw = Path(work) / "raw"
        spy = [chosen.py_spy, "record", "-p", str(contender.server.pid), "-d", str(chosen.seconds), "-f", "raw"]
        spy += ["-r", str(SAMPLES_PER_S), "-o", str(raw)]
        bench = Bench(upstream, LOAD_CORE, chosen.seconds)
        load = Load(0, chosen.connections, chosen.seconds / 2, tokens=chosen.tokens)
        alone = bench.cell(contender, load, "saturation", 0, 0.0)
        recorder = threading.Thread(target=lambda: subprocess.run(spy, stdout=sys.stderr, check=True))
        recorder.start()
        bench.cell(contender, replace(load, seconds=chosen.seconds + 1.0), "saturation", 0, 0.0)
        recorder.join()
        found = shares(raw.read_text())
    cost = (alone.cpu_us_per_token if chosen.tokens else alone.cpu_us_per_answer) or 0.0
    print(
        f"{alone.answers_per_s:,.0f} answers/s, {cost:.1f} µs of CPU for each {'chunk' if chosen.tokens else 'answer'}"
    )
    print("\n| part | share | µs |\n|---|---:|---:|")
    for name, share in found.items():
        print(f"| {name} | {share:.0%} | {share * cost:.1f} |")


if __name__ == "__main__":
    main()
