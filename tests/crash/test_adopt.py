"""An engine outlives its gateway: it is kept, adopted, or ended where it differs from the one that would be started.

Real engines, few starts: each test of this module goes on from where the one before it left off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import orjson
import psutil
import pytest

from tests.support.adapters import describe_base, make_adapter
from tests.support.commands import run_hatrack
from tests.support.gateway import READY_TIMEOUT_S, STOP_TIMEOUT_S, Gateway
from tests.support.processes import running
from tests.support.waiting import wait_until

QUESTION = "What is the capital of France?"
PATIENCE_S = 600.0
ENGINE_KEY = "key-of-the-engine-0123"


@pytest.fixture(scope="module")
def gateway(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that keeps its engine, with one adapter that serves and one that is deleted."""
    home = tmp_path_factory.mktemp("kept")
    base = describe_base(base_dir, cache_dir=home / "test-cache")
    started = Gateway(
        home=home,
        base_dir=base_dir,
        settings={"HATRACK_ENGINE_SLOTS": "2", "HATRACK_ENGINE_RESIDENT": "4", "HATRACK_ENGINE_CANARY_S": "2"},
        arguments=("--keep-engine",),
    )
    try:
        started.start()
        for seed, name in enumerate(("voice", "gone")):
            made = make_adapter(home / "made" / name, base, rank=4, seed=seed).directory
            assert started.push(name, made).status_code == 201
        with started.http() as http:
            assert http.delete("/v1/adapters/gone", params={"force": "true"}).status_code in (200, 204)
        yield started
    finally:
        run_hatrack(started, "down")
        assert started.process is not None
        started.process.wait(STOP_TIMEOUT_S)
    assert started.engine_processes() == [], "processes of the engine outlived `hatrack down`"


def new_engine_recorded(gateway: Gateway, old: list[psutil.Process]) -> bool:
    """Whether a new engine is on record: between two engines there is none, or one that has ended."""
    try:
        pid = orjson.loads((gateway.home / "engine" / "engine.json").read_bytes())["pid"]
        return pid is not None and psutil.Process(pid) not in old
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


def engine_state(gateway: Gateway) -> dict[str, Any]:
    state = httpx.get(f"{gateway.url}/readyz", timeout=60).json()["engine"]
    assert isinstance(state, dict)
    return state


def answers_with(gateway: Gateway, text: str) -> bool:
    """Whether `voice` still gives this answer. Asked again where it does not: a canary may have shared a step with it,
    and two of a batch are summed in another order."""
    return any(gateway.answer("voice", QUESTION) == text for _ in range(3))


def has_request_in_flight(gateway: Gateway) -> bool:
    with gateway.http() as http:
        return bool(http.get("/v1/load").json()["in_flight"] > 0)


def logged_since(gateway: Gateway, start: int) -> str:
    """What the gateway has logged after its first `start` bytes."""
    return (gateway.home / "gateway.log").read_bytes()[start:].decode(errors="replace")


def log_size(gateway: Gateway) -> int:
    return (gateway.home / "gateway.log").stat().st_size


def test_a_stopped_gateway_leaves_its_engine_idle_and_the_next_one_adopts_it(gateway: Gateway) -> None:
    engine, text = gateway.engine_server(), gateway.answer("voice", QUESTION)
    assert gateway.process is not None
    assert os.getsid(engine.pid) != os.getsid(gateway.process.pid), "a Ctrl-C for the gateway would reach the engine"
    with ThreadPoolExecutor() as pool:
        flying = pool.submit(gateway.chat, "voice", "Tell me a story.", max_tokens=60, ignore_eos=True)
        wait_until(
            lambda: has_request_in_flight(gateway) or flying.done(), "the request never ran", timeout_s=PATIENCE_S
        )
        gateway.stop()
        assert flying.result().status_code == 200, "what was in flight was not answered to its end"
    assert running([engine]) == [engine]
    assert gateway.running_requests() == 0
    digests = sorted(path.name for path in (gateway.home / "adapters").iterdir() if len(path.name) == 64)
    loaded = gateway.ask_engine("/hatrack/plugin?loaded=1").json()["loaded"]
    assert loaded == digests
    assert len(digests) == 2

    gateway.start()
    state = engine_state(gateway)
    assert state["state"] == "ready"
    assert state["reason"].startswith("adopted")
    assert gateway.engine_server().pid == engine.pid
    assert gateway.ask_engine("/hatrack/plugin?loaded=1").json()["loaded"] == loaded
    assert answers_with(gateway, text)
    kept = sorted(path.name for path in (gateway.home / "adapters").iterdir() if len(path.name) == 64)
    assert kept == digests, "files were removed that the adopted engine has loaded"


def test_after_kill_9_of_the_gateway_the_next_start_adopts_its_engine(gateway: Gateway) -> None:
    engine, text = gateway.engine_server(), gateway.answer("voice", QUESTION)
    with ThreadPoolExecutor() as pool:
        flying = pool.submit(gateway.chat, "voice", "Tell me a story.", max_tokens=1500, ignore_eos=True)
        wait_until(lambda: gateway.running_requests() > 0, "the request never ran", timeout_s=PATIENCE_S)
        gateway.kill()
        assert isinstance(flying.exception(), httpx.TransportError)
    gateway.start()
    assert gateway.engine_server().pid == engine.pid
    assert engine_state(gateway)["reason"].startswith("adopted")
    wait_until(lambda: gateway.running_requests() == 0, "the request never ended", timeout_s=PATIENCE_S)
    assert answers_with(gateway, text)


def test_an_adopted_engine_that_is_killed_is_replaced_like_one_the_gateway_started(gateway: Gateway) -> None:
    old = gateway.engine_processes()
    gateway.engine_server().kill()
    wait_until(lambda: engine_state(gateway)["state"] != "ready", "the loss was not seen", timeout_s=PATIENCE_S)
    gateway.wait_ready()
    assert running(old) == []
    assert engine_state(gateway)["reason"] == "the engine answers"
    assert gateway.answer("voice", QUESTION)
    assert len([path for path in (gateway.home / "adapters").iterdir() if len(path.name) == 64]) == 1


def test_down_with_keep_engine_leaves_the_engine_to_the_next_gateway(gateway: Gateway) -> None:
    engine = gateway.engine_server()
    gateway.arguments = ("--no-keep-engine",)
    gateway.stop()
    gateway.start()
    assert gateway.engine_server().pid == engine.pid
    assert run_hatrack(gateway, "down", "--keep-engine").returncode == 0
    assert gateway.process is not None
    gateway.process.wait(STOP_TIMEOUT_S)
    assert running([engine]) == [engine]
    assert sorted(path.name for path in (gateway.home / "engine").iterdir()) == [
        "engine.json",
        "engine.log",
        "engine.sock",
    ], "the request to keep it was for this once"


def external(gateway: Gateway, **settings: str) -> Gateway:
    """A gateway of the same home that is told to use the engine which runs there."""
    url = f"unix:{gateway.home / 'engine' / 'engine.sock'}"
    return replace(gateway, settings={**gateway.settings, "HATRACK_ENGINE_URL": url, **settings}, arguments=())


def test_an_engine_at_a_url_is_used_but_neither_started_nor_stopped(gateway: Gateway) -> None:
    engine = gateway.engine_server()
    user = external(gateway)
    user.start()
    assert engine_state(user)["reason"].endswith("engine.sock answers")
    assert user.answer("voice", QUESTION)
    user.stop()
    assert running([engine]) == [engine]
    assert gateway.engine_server().pid == engine.pid


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("HATRACK_BASE_NAME", "another", "not the base `another` (HATRACK_BASE_MODEL, HATRACK_BASE_NAME)"),
        ("HATRACK_HOME", "elsewhere", "both must use the same directory (HATRACK_HOME)"),
        ("HATRACK_ENGINE_SLOTS", "4", "it has 2 adapter slots, HATRACK_ENGINE_SLOTS is 4"),
        ("HATRACK_ENGINE_DTYPE", "float16", "is a different model: dtype differ"),
    ],
)
def test_an_incompatible_engine_at_a_url_is_refused_at_start(
    gateway: Gateway, tmp_path: Path, setting: str, value: str, reason: str
) -> None:
    given = str(tmp_path / value) if setting == "HATRACK_HOME" else value
    refused = run_hatrack(external(gateway, **{setting: given}), "serve")
    assert refused.returncode == 1
    message = " ".join(refused.stderr.split())
    assert "(HATRACK_ENGINE_URL) is incompatible" in message
    assert reason in message


def test_a_server_without_the_plugin_is_refused_at_start(gateway: Gateway) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as plain:
        Thread(target=plain.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{plain.server_port}"
        refused = run_hatrack(external(gateway, HATRACK_ENGINE_URL=url), "serve")
        plain.shutdown()
    assert refused.returncode == 1
    assert "Hatrack's plugin does not respond" in " ".join(refused.stderr.split())


def test_a_frozen_engine_is_replaced_and_a_changed_flag_is_named_in_the_log(gateway: Gateway) -> None:
    old = gateway.engine_processes()
    assert len(old) >= 3
    for process in old:
        process.suspend()
    gateway.arguments = ("--keep-engine",)
    logged = log_size(gateway)
    gateway.start()
    assert running(old) == []
    assert "it does not respond" in logged_since(gateway, logged)

    gateway.stop()
    old = gateway.engine_processes()
    assert len(old) >= 3
    gateway.settings["HATRACK_ENGINE_SLOTS"] = "3"
    logged = log_size(gateway)
    gateway.start(wait=False)
    wait_until(lambda: running(old) == [], "the old engine still runs", timeout_s=PATIENCE_S)
    wait_until(lambda: new_engine_recorded(gateway, old), "no new engine was started", timeout_s=PATIENCE_S)
    assert "the flag --max-loras" in logged_since(gateway, logged)
    gateway.stop()
    assert gateway.engine_processes() == [], "an engine that was not ready yet was kept"


def test_an_engine_started_by_hatrack_engine_serves_a_gateway_and_survives_its_down(gateway: Gateway) -> None:
    path = gateway.home / "alone.sock"
    user = external(gateway, HATRACK_ENGINE_URL=f"unix:{path}", HATRACK_ENGINE_KEY=ENGINE_KEY)
    with (gateway.home / "gateway.log").open("ab") as log:
        engine = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "engine", "--uds", str(path)],
            env=user.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        user.start(wait=False)  # before the engine is there: it is waited for
        wait_until(user.listens, "the gateway does not listen", timeout_s=PATIENCE_S)
        assert engine_state(user)["state"] in ("starting", "down")
        user.wait_ready()
        assert user.answer("voice", QUESTION)
        assert run_hatrack(user, "down").returncode == 0
        assert user.process is not None
        user.process.wait(STOP_TIMEOUT_S)
        wrong = run_hatrack(user, "serve", HATRACK_ENGINE_KEY="wrong-key-0123456789")
        assert wrong.returncode == 1
        assert "HATRACK_ENGINE_KEY" in wrong.stderr
        assert engine.poll() is None
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(STOP_TIMEOUT_S)
    wait_until(lambda: user.engine_processes() == [], "the engine still runs", timeout_s=READY_TIMEOUT_S)
