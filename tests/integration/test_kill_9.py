"""kill -9 of the gateway and of the engine, once each, under load.

Runs last: the engine that the other tests share ends here. Worker and trainer are killed in test_evaluations.py; all
other moments of a kill are in tests/crash.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.adapters import describe_base, make_adapter
from tests.support.gateway import Gateway
from tests.support.processes import running
from tests.support.stored import scale_stored_adapter
from tests.support.waiting import wait_until

QUESTION = "What is the capital of France?"
EVERY_MODULE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def new_engine_recorded(gateway: Gateway, former: int) -> bool:
    """Whether the engine on record is not the one whose API server had the pid `former`."""
    try:
        return int(json.loads((gateway.home / "engine" / "engine.json").read_bytes())["pid"]) != former
    except (FileNotFoundError, json.JSONDecodeError):
        return False


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


@pytest.mark.slow
def test_kill_9_of_the_engine_loses_only_requests_in_flight_and_a_damaged_adapter_fails_alone(
    gateway: Gateway, base_dir: Path, tmp_path: Path
) -> None:
    base = describe_base(base_dir, cache_dir=tmp_path / "base-cache")
    bad = make_adapter(tmp_path / "bad", base, rank=4, seed=101, modules=EVERY_MODULE).directory
    pushed = gateway.push("bad", bad)
    assert pushed.status_code == 201, pushed.text
    base_name = gateway.base_name()
    with gateway.http() as http:
        assert http.put("/v1/adapters/pemberton/pin").json()["pinned"] is True
        pinned = http.get("/v1/adapters/pemberton/versions/1").json()["digest"]
    before = {name: gateway.answer_samples(name, QUESTION, max_tokens=12) for name in (base_name, "tidewater")}
    scale_stored_adapter(gateway, pushed.json()["digest"], float("nan"))
    old = gateway.engine_processes()
    with ThreadPoolExecutor(4) as pool:
        flying = [
            pool.submit(gateway.chat, base_name, "Tell me a long story.", max_tokens=1200, ignore_eos=True)
            for _ in range(4)
        ]
        wait_until(lambda: gateway.running_requests() >= 4 or any(job.done() for job in flying), "they never ran")
        engine = gateway.engine_server()
        engine.kill()
        lost = [job.result() for job in flying]
    assert {response.status_code for response in lost} <= {502, 503}, [response.text for response in lost]
    at_once = gateway.chat(base_name, "hello")
    if at_once.status_code == 503:
        assert int(at_once.headers["retry-after"]) > 0
    # until the gateway has seen it, /readyz speaks of the engine that was; the new one's record stays, and cannot be
    # missed as a moment without an engine can
    wait_until(lambda: new_engine_recorded(gateway, engine.pid), "the loss was not seen")
    gateway.wait_ready()
    assert running(old) == [], "processes of the old engine live on"
    wait_until(lambda: pinned in gateway.loaded(), "the pinned adapter was not loaded again")

    models = [base_name, "tidewater", "bad"] * 4
    with ThreadPoolExecutor(len(models)) as pool:
        responses = list(pool.map(lambda model: gateway.chat(model, QUESTION, max_tokens=12), models))
    for model, response in zip(models, responses, strict=True):
        if model == "bad":
            assert response.status_code in (409, 500), response.text
            assert response.json()["error"]["code"] in ("adapter_not_finite", "version_corrupt"), response.text
        else:
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["message"]["content"].strip(), f"an empty answer from {model}"
    wait_until(lambda: gateway.chat("bad", QUESTION).status_code == 409, "the version never became unservable")
    for name, samples in before.items():
        assert gateway.still_answers(samples, name, QUESTION, max_tokens=12), name
