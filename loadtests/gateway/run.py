"""The gateway benchmark: all contenders in one run, in turn, on one core each time.

    .venv/bin/python -m loadtests.gateway.run --quick
    .venv/bin/python -m loadtests.gateway.run --peers ~/.cache/hatrack-peers --out var/gateway-bench

Core 0 has the gateway that is measured; core 1 has the fake engine and the driver. Peers that are not installed are
reported as absent: `loadtests/gateway/peers/install.sh DIRECTORY` installs them into environments of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from loadtests.gateway.cells import Bench
from loadtests.gateway.clock import resident_mib
from loadtests.gateway.contenders import (
    Contender,
    Failed,
    Place,
    Server,
    bare_relay,
    fastapi_httpx,
    free_port,
    litellm,
    vllm_router,
)
from loadtests.gateway.hatrack import SEQUENCES, hatrack, plugin_report
from loadtests.gateway.picture import draw
from loadtests.gateway.report import table, verdict
from loadtests.gateway.summary import rows

GATEWAY_CORE, LOAD_CORE = 0, 1
WHOLE_PROMPTS = {"HATRACK_ADMISSION_PREFILL": "1000000000"}
"""The engine reads prompts in no time: by default six long ones at once would be the bound of this benchmark."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a contender gave errors."""
    chosen = _arguments(argv)
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("two cores are needed: one for the gateway, one for engine and driver")
    chosen.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as work:
        result = _run(chosen, Path(work))
    result["took_s"] = round(time.monotonic() - began)
    (chosen.out / "gateway.json").write_text(json.dumps(result, indent=1))
    (chosen.out / "gateway.svg").write_text(draw(result))
    text = table(result) + "\n" + verdict(result)
    (chosen.out / "gateway.md").write_text(text)
    print(text)
    return 1 if any(row["errors"] for row in result["rows"]) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=None, help="directory that peers/install.sh filled")
    parser.add_argument("--out", type=Path, default=Path("var/gateway-bench"), help="where the results go")
    parser.add_argument("--quick", action="store_true", help="16 connections, one round: about a minute")
    parser.add_argument("--rounds", type=int, default=2, help="how often all take their turn")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one measurement, s")
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--only", nargs="+", help="names of contenders, as the report has them")
    chosen = parser.parse_args(argv)
    if chosen.quick:
        chosen.rounds, chosen.seconds, chosen.connections = 1, 1.0, [16]
    return chosen


def _run(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Start everybody, let each take its turns, and gather the figures."""
    with ExitStack() as stack:
        upstream = start_upstream(work, stack)
        contenders, absent = _contenders(Place(work, upstream.url, GATEWAY_CORE), chosen.peers, chosen.only)
        for contender in contenders:
            stack.callback(contender.server.stop)
            contender.server.start()
            contender.prepare(contender)
            _try(contender)
            contender.server.pause()
        bench, load = Bench(upstream, LOAD_CORE, chosen.seconds), os.getloadavg()
        memory: dict[str, float] = {}
        for number in range(chosen.rounds):
            print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
            for contender in contenders:
                contender.server.go_on()
                for connections in chosen.connections:
                    for stream in (False, True):
                        bench.measure(contender, connections, stream, number)
                memory[contender.name] = round(resident_mib(contender.server.pid), 1)
                contender.server.pause()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "load_average_at_start": load,
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
        "contenders": {contender.name: contender.what for contender in contenders},
        "absent": absent,
        "memory_mib": memory,
        "rows": [row.as_dict() for row in rows(bench.cells)],
        "cells": [asdict(cell) for cell in bench.cells],
    }


def start_upstream(work: Path, stack: ExitStack, *, sequences: int = SEQUENCES, core: int = LOAD_CORE) -> Server:
    """The fake engine, started; it ends with ``stack``."""
    plugin = work / "plugin.json"
    plugin.write_text(json.dumps(plugin_report(work, sequences)))
    port = free_port()
    command = [sys.executable, "-m", "loadtests.gateway.upstream", "--port", str(port), "--plugin", str(plugin)]
    server = Server("upstream", command, port, core, work / "upstream.log")
    stack.callback(server.stop)
    server.start()
    return server


def _contenders(place: Place, peers: Path | None, only: Sequence[str] | None) -> tuple[list[Contender], list[str]]:
    found: list[Contender | None] = [bare_relay(place), hatrack(place, more=WHOLE_PROMPTS), fastapi_httpx(place)]
    absent = []
    for name, make in (("vllm-router", vllm_router), ("LiteLLM proxy", litellm)):
        peer = make(place, peers) if peers is not None else None
        found.append(peer)
        if peer is None:
            absent.append(name)
    return [peer for peer in found if peer is not None and (not only or peer.name in only)], absent


def _try(contender: Contender) -> None:
    """One answer that must be the engine's, under the name that was asked for. Raises Failed."""
    body = {"model": contender.model, "messages": [{"role": "user", "content": "Where is my parcel?"}]}
    response = httpx.post(
        contender.server.url + "/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {contender.key}"},
        timeout=30,
        trust_env=False,
    )
    named = f'"model":"{contender.model}"'
    if response.status_code != 200 or named not in response.text.replace(": ", ":") or "parcel" not in response.text:
        raise Failed(f"{contender.name} answered {response.status_code}: {response.text[:500]}")


def _machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
