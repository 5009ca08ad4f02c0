"""kill -9 of the gateway under load.

Runs last: the gateway that the other tests share is killed here. Worker and trainer are killed in test_evaluations.py;
the engine, and all other moments of a kill, in tests/crash.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.adapters import describe_base, make_adapter
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

QUESTION = "What is the capital of France?"
EVERY_MODULE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_kill_9_of_the_gateway_loses_nothing_that_was_acknowledged(
    gateway: Gateway, base_dir: Path, tmp_path: Path
) -> None:
    base = describe_base(base_dir, cache_dir=tmp_path / "base-cache")
    acknowledged = gateway.push(
        "acknowledged", make_adapter(tmp_path / "acknowledged", base, rank=4, seed=43).directory
    )
    assert acknowledged.status_code == 201, acknowledged.text
    torn = make_adapter(tmp_path / "torn", base, rank=16, seed=44, modules=EVERY_MODULE).directory
    before = {name: gateway.answer_samples(name, QUESTION, max_tokens=12) for name in ("tidewater", "acknowledged")}
    engine = gateway.engine_server()
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(gateway.chat, "tidewater", "Tell me a story.", max_tokens=1000, ignore_eos=True)
        wait_until(lambda: gateway.running_requests() > 0 or stream.done(), "the engine never began")
        upload = pool.submit(gateway.push, "torn", torn)
        staging = gateway.home / "adapters" / ".staging"
        wait_until(lambda: any(staging.iterdir()) or upload.done(), "the upload never began")
        gateway.kill()
        for cut in (stream, upload):
            with suppress(httpx.TransportError):
                cut.result()
    gateway.start()
    assert gateway.engine_server().pid == engine.pid, "the engine was not adopted"
    for name, samples in before.items():
        assert gateway.still_answers(samples, name, QUESTION, max_tokens=12), name
    with gateway.http() as http:
        pushed = http.get("/v1/adapters/torn")
        if pushed.status_code == 404:
            assert gateway.push("torn", torn).status_code == 201
        wait_until(lambda: gateway.chat("torn", QUESTION, max_tokens=2).status_code == 200, pushed.text)
    wait_until(lambda: not list(staging.iterdir()), "what was torn is left")
