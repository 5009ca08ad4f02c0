"""Samples of a profile go to the part of the gateway that they belong to."""

from __future__ import annotations

import pytest

from loadtests.gateway.profile import REST, part_of, shares

SERVER = "<module> (cli.py:1);Server.run (uvicorn/server.py:60);Runner.run (asyncio/runners.py:118)"
CYCLE = "RequestResponseCycle.run_asgi (uvicorn/protocols/http/httptools_impl.py:416)"
INFER = "Pipeline.infer (service/inference/pipeline.py:100)"


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        ([CYCLE], "HTTP server"),
        ([CYCLE, INFER], "the rest of the data path"),
        ([CYCLE, INFER, "KeyLimiter.enter (service/access/limits.py:120)"], "limits"),
        (
            [CYCLE, INFER, "Accounts.__call__ (service/inference/account.py:80)", "info (logging/__init__.py:1)"],
            "log line",
        ),
        ([CYCLE, INFER, "open (service/engine/client.py:9)", "_request (aiohttp/client.py:4)"], "HTTP to the engine"),
        ([CYCLE, INFER, "timeout (asyncio/timeouts.py:129)"], "deadlines and watch on the client"),
        (["poll (selectors.py:1)"], REST),
    ],
)
def test_the_innermost_frame_that_belongs_somewhere_counts(frames: list[str], part: str) -> None:
    assert part_of(frames) == part


def test_shares_are_of_the_event_loops_samples() -> None:
    raw = f"{SERVER} 10\n{SERVER};{CYCLE} 20\n{SERVER};{CYCLE};{INFER} 10\nThread.run (threading.py:1) 500\n"
    assert shares(raw) == {"HTTP server": 0.5, REST: 0.25, "the rest of the data path": 0.25}
