"""Samples of a profile go to the part of the gateway that they belong to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from loadtests.gateway import profile
from loadtests.gateway.contenders import REPO
from loadtests.gateway.profile import PARTS, REST, part_of, shares

SAMPLER = Path(profile.__file__).parent / "sampler"
SERVER = "<module> (cli.py);Server.run (uvicorn/server.py);Runner.run (asyncio/runners.py)"
CYCLE = "RequestResponseCycle.run_asgi (uvicorn/protocols/http/httptools_impl.py)"
INFER = "Pipeline.infer (service/inference/pipeline.py)"


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        ([CYCLE], "HTTP server"),
        ([CYCLE, INFER], "the rest of the data path"),
        ([CYCLE, INFER, "KeyLimiter.enter (service/access/limits.py)"], "limits"),
        (
            [CYCLE, INFER, "Accounts.__call__ (service/telemetry/record.py)", "info (logging/__init__.py)"],
            "log line",
        ),
        ([CYCLE, INFER, "send (service/engine/client.py)", "exchange (service/http/http1.py)"], "HTTP to the engine"),
        ([CYCLE, INFER, "_enter (service/inference/dispatch.py)"], "the rest of the data path"),
        ([CYCLE, INFER, "Dispatch._enter (service/inference/dispatch.py)"], "admission"),
        ([CYCLE, INFER, "timeout (asyncio/timeouts.py)"], "deadlines and watch on the client"),
        ([CYCLE, INFER, "EngineClock.leave (service/engine/busy.py)"], "usage and budgets"),
        ([CYCLE, INFER, "Budgets.check (service/costs/budgets.py)"], "usage and budgets"),
        ([CYCLE, INFER, "Residency.is_cold (service/engine/residency.py)"], "admission"),
        ([CYCLE, INFER, "_admission_request (service/inference/dispatch.py)"], "admission"),
        (["poll (selectors.py)"], REST),
    ],
)
def test_the_innermost_frame_that_belongs_somewhere_counts(frames: list[str], part: str) -> None:
    assert part_of(frames) == part


def test_each_part_of_the_gateway_has_files() -> None:
    frames = [f"f ({path.relative_to(REPO)})" for path in (REPO / "service").rglob("*.py")]
    counts = Counter(part_of([frame]) for frame in frames)
    assert {name for name, _ in PARTS} - counts.keys() == {"deadlines and watch on the client"}, (
        "its files are asyncio's"
    )


def test_shares_are_of_the_event_loops_samples() -> None:
    raw = f"{SERVER} 10\n{SERVER};{CYCLE} 20\n{SERVER};{CYCLE};{INFER} 10\nThread.run (threading.py) 500\n"
    assert shares(raw) == {"HTTP server": 0.5, REST: 0.25, "the rest of the data path": 0.25}


def test_a_process_samples_itself_by_its_cpu_time(tmp_path: Path) -> None:
    out = tmp_path / "stacks"
    code = (
        "import os, signal, time\n"
        "def busy():\n"
        "    end = time.process_time() + 0.2\n"
        "    while time.process_time() < end: pass\n"
        "os.kill(os.getpid(), signal.SIGUSR1); busy(); time.sleep(0.3); os.kill(os.getpid(), signal.SIGUSR2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SAMPLER), "GATEWAY_PROFILE": str(out)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=240)
    counts = {stack: int(count) for stack, _, count in (line.rpartition(" ") for line in out.read_text().splitlines())}
    assert sum(count for stack, count in counts.items() if "busy" in stack) > 0.8 * sum(counts.values())
