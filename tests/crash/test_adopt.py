"""An engine outlives its gateway: kept, adopted, or ended where it is not just what would be started.

Real engines, few starts: the tests of this module go on from where the one before left off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from tests.support.gateway import READY_TIMEOUT_S, Gateway

QUESTION = "What is the capital of France?"
COMMAND_TIMEOUT_S = 300.0
ENDED_S = 60.0
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
        hatrack(started, "down")
        assert started.process is not None
        started.process.wait(ENDED_S)
    assert started.engine_processes() == [], "processes of the engine outlived `hatrack down`"


def hatrack(gateway: Gateway, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the gateway's environment."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env=gateway.environment | settings,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def another_server(gateway: Gateway, old: list[psutil.Process]) -> bool:
    """Whether a new engine is on record: between two there is none, or one that has ended."""
    try:
        pid = orjson.loads((gateway.home / "engine" / "engine.json").read_bytes())["pid"]
        return pid is not None and psutil.Process(pid) not in old
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


def engine_state(gateway: Gateway) -> dict[str, Any]:
    state = httpx.get(f"{gateway.url}/readyz", timeout=60).json()["engine"]
    assert isinstance(state, dict)
    return state


def wait_until(what: Callable[[], bool], timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers_with(gateway: Gateway, text: str) -> bool:
    """Whether `voice` says what it said: asked again where it does not, for a canary may have shared a step with it,
    and two of a batch are summed in another order."""
    return any(gateway.answer("voice", QUESTION) == text for _ in range(3))


def caller_in_engine(gateway: Gateway) -> bool:
    with gateway.http() as http:
        return bool(http.get("/v1/load").json()["in_flight"] > 0)


def said_since(gateway: Gateway, start: int) -> str:
    """What the gateway has logged from there on."""
    return (gateway.home / "gateway.log").read_bytes()[start:].decode(errors="replace")


def log_size(gateway: Gateway) -> int:
    return (gateway.home / "gateway.log").stat().st_size


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it may end between two looks
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_stopped_gateway_leaves_its_engine_idle_and_the_next_one_adopts_it(gateway: Gateway) -> None:
    engine, text = gateway.engine_server(), gateway.answer("voice", QUESTION)
    assert gateway.process is not None
    assert os.getsid(engine.pid) != os.getsid(gateway.process.pid), "a Ctrl-C for the gateway would reach the engine"
    with ThreadPoolExecutor() as pool:
        flying = pool.submit(gateway.chat, "voice", "Tell me a story.", max_tokens=60, ignore_eos=True)
        wait_until(lambda: caller_in_engine(gateway) or flying.done())
        gateway.stop()
        assert flying.result().status_code == 200, "what was in flight was not answered to its end"
    assert alive([engine]) == [engine]
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
        wait_until(lambda: gateway.running_requests() > 0)
        gateway.kill()
        assert isinstance(flying.exception(), httpx.TransportError)
    gateway.start()
    assert gateway.engine_server().pid == engine.pid
    assert engine_state(gateway)["reason"].startswith("adopted")
    wait_until(lambda: gateway.running_requests() == 0)
    assert answers_with(gateway, text)


def test_an_adopted_engine_that_is_killed_is_replaced_and_watched_like_our_own(gateway: Gateway) -> None:
    old = gateway.engine_processes()
    gateway.engine_server().kill()
    wait_until(lambda: engine_state(gateway)["state"] != "ready")
    gateway.wait_ready()
    assert alive(old) == []
    assert engine_state(gateway)["reason"] == "the engine answers"
    assert gateway.answer("voice", QUESTION)
    assert len([path for path in (gateway.home / "adapters").iterdir() if len(path.name) == 64]) == 1


def test_down_may_leave_the_engine_to_the_next_gateway(gateway: Gateway) -> None:
    engine = gateway.engine_server()
    gateway.arguments = ("--no-keep-engine",)
    gateway.stop()
    gateway.start()
    assert gateway.engine_server().pid == engine.pid
    assert hatrack(gateway, "down", "--keep-engine").returncode == 0
    assert gateway.process is not None
    gateway.process.wait(ENDED_S)
    assert alive([engine]) == [engine]
    assert sorted(path.name for path in (gateway.home / "engine").iterdir()) == [
        "engine.json",
        "engine.log",
        "engine.sock",
    ], "the request to keep it was for this once"


def external(gateway: Gateway, **settings: str) -> Gateway:
    """A gateway of the same home that is told to use the engine which runs there."""
    url = f"unix:{gateway.home / 'engine' / 'engine.sock'}"
    return replace(gateway, settings={**gateway.settings, "HATRACK_ENGINE_URL": url, **settings}, arguments=())


def test_an_engine_at_a_url_is_used_and_neither_started_nor_ended(gateway: Gateway) -> None:
    engine = gateway.engine_server()
    user = external(gateway)
    user.start()
    assert engine_state(user)["reason"].endswith("engine.sock answers")
    assert user.answer("voice", QUESTION)
    user.stop()
    assert alive([engine]) == [engine]
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
def test_an_engine_at_a_url_that_does_not_fit_is_refused_at_start(
    gateway: Gateway, tmp_path: Path, setting: str, value: str, reason: str
) -> None:
    given = str(tmp_path / value) if setting == "HATRACK_HOME" else value
    refused = hatrack(external(gateway, **{setting: given}), "serve")
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())
    assert "(HATRACK_ENGINE_URL) is incompatible" in said
    assert reason in said


def test_a_server_without_the_plugin_is_refused_at_start(gateway: Gateway) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as plain:
        Thread(target=plain.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{plain.server_port}"
        refused = hatrack(external(gateway, HATRACK_ENGINE_URL=url), "serve")
        plain.shutdown()
    assert refused.returncode == 1
    assert "Hatrack's plugin does not respond" in " ".join(refused.stderr.split())


def test_a_frozen_engine_is_ended_and_a_changed_flag_names_itself(gateway: Gateway) -> None:
    old = gateway.engine_processes()
    assert len(old) >= 3
    for process in old:
        process.suspend()
    gateway.arguments = ("--keep-engine",)
    logged = log_size(gateway)
    gateway.start()
    assert alive(old) == []
    assert "it does not respond" in said_since(gateway, logged)

    gateway.stop()
    old = gateway.engine_processes()
    assert len(old) >= 3
    gateway.settings["HATRACK_ENGINE_SLOTS"] = "3"
    logged = log_size(gateway)
    gateway.start(wait=False)
    wait_until(lambda: alive(old) == [])
    wait_until(lambda: another_server(gateway, old))
    assert "the flag --max-loras" in said_since(gateway, logged)
    gateway.stop()
    assert gateway.engine_processes() == [], "an engine that was not ready yet was kept"


def test_hatrack_engine_runs_one_for_a_gateway_elsewhere_and_down_is_not_its_end(gateway: Gateway) -> None:
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
        wait_until(lambda: _listens(user))
        assert engine_state(user)["state"] in ("starting", "down")
        user.wait_ready()
        assert user.answer("voice", QUESTION)
        assert hatrack(user, "down").returncode == 0
        assert user.process is not None
        user.process.wait(ENDED_S)
        wrong = hatrack(user, "serve", HATRACK_ENGINE_KEY="wrong-key-0123456789")
        assert wrong.returncode == 1
        assert "HATRACK_ENGINE_KEY" in wrong.stderr
        assert engine.poll() is None
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait(2 * ENDED_S)
    wait_until(lambda: user.engine_processes() == [], READY_TIMEOUT_S)


def _listens(gateway: Gateway) -> bool:
    try:
        return httpx.get(f"{gateway.url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
