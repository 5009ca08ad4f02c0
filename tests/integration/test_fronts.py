"""Two fronts, two agents with a real engine each, one gateway: what each death costs, and what all see alike."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from adapters.base import describe
from tests.support.adapters import make_adapter, make_base
from tests.support.cluster import ClusterOfProcesses, Load, Outcome, is_ready, kill_at_once, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
SILENCE_S = 8.0
VOICES = 4
TOKENS = 24
SETTINGS = {
    "HATRACK_ENGINE_SLOTS": "4",
    "HATRACK_ENGINE_RESIDENT": "8",
    "HATRACK_ENGINE_ARGS": "--enforce-eager",
    "HATRACK_AGENT_TIMEOUT_S": f"{SILENCE_S:g}",
    "HATRACK_FRONT_MAX_AGE_S": "100000",
    "HATRACK_USAGE_FLUSH_S": "0.5",
    # whoever waits behind others on a slow machine is none of these tests' questions
    "HATRACK_QUEUE_TIMEOUT_S": "1000000",
    "HATRACK_REQUEST_TIMEOUT_S": "1000000",
    "HATRACK_ENGINE_STALL_S": "1000",
    "HATRACK_TRAINER": "off",
    "HATRACK_KNOWLEDGE": "false",
}
NO_LATER_S = 3.0
"""After so long nothing fails any more that was asked of what is left."""


@pytest.fixture(scope="module", params=["stub", "vllm"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfProcesses]:
    """With engines that are stubs, and with real ones."""
    home, is_real = tmp_path_factory.mktemp("cluster"), request.param == "vllm"
    base_dir = request.getfixturevalue("base_dir") if is_real else make_base(home / "tiny")
    made = ClusterOfProcesses(home, base_dir, SETTINGS, is_real)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def voices(cluster: ClusterOfProcesses, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Adapters over both engines; the first has a second version."""
    gateway, root = cluster.gateway, tmp_path_factory.mktemp("voices")
    about = describe(cluster.base_dir, served_name="x", dtype="bfloat16", quantization=None, engine_version="0")
    names = [f"voice-{number}" for number in range(VOICES)]
    for number, name in enumerate([*names, names[0]]):
        make_adapter(root / str(number), about, seed=number, scale=0.02)
        pushed = gateway.push(name, root / str(number))
        assert pushed.status_code == 201, pushed.text
    for front in range(2):
        until(lambda front=front: all(served_by(cluster, front, name) for name in names))  # type: ignore[misc]
    return names


def served_by(cluster: ClusterOfProcesses, front: int, model: str, key: str | None = None) -> str | None:
    """Which version answers at a front; None: none does."""
    with cluster.front(front, key or cluster.gateway.key) as http:
        answer = http.post("/v1/completions", json={"model": model, "prompt": "Hello", "max_tokens": 1})
        return answer.headers.get("x-hatrack-adapter") if answer.status_code == 200 else None


def status(cluster: ClusterOfProcesses, front: int, key: str, tokens: int = 1) -> int:
    with cluster.front(front, key) as http:
        body = {"model": "voice-1", "prompt": "Hello", "max_tokens": tokens}
        return http.post("/v1/completions", json=body).status_code


def requests_counted(cluster: ClusterOfProcesses) -> int:
    with cluster.gateway.http() as http:
        return sum(row["requests"] for row in http.get("/v1/usage").json()["data"])


def failed(outcomes: list[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if each.error is not None]


def test_limits_hold_over_both_fronts(cluster: ClusterOfProcesses, voices: list[str]) -> None:
    limit = 12
    key = str(cluster.gateway.create_key(name="k", scopes=["infer"], limits={"requests_per_minute": limit})["key"])
    for front in range(2):
        until(lambda front=front: status(cluster, front, key) != 401)  # type: ignore[misc]
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        passed = list(pool.map(lambda number: status(cluster, number % 2, key), range(3 * limit))).count(200)
    filled = (time.monotonic() - began) * limit / 60
    assert limit - 4 <= passed <= limit + filled + 1, "two were asked before, and the bucket fills meanwhile"


def test_a_promotion_and_a_revocation_are_seen_by_both(cluster: ClusterOfProcesses, voices: list[str]) -> None:
    created = cluster.gateway.create_key(name="k", scopes=["infer"])
    for front in range(2):
        until(lambda front=front: status(cluster, front, created["key"]) == 200)  # type: ignore[misc]
    with cluster.gateway.http() as http:
        assert http.put("/v1/adapters/voice-0/aliases/live", json={"version": 2}).status_code == 200
        for front in range(2):
            until(lambda front=front: served_by(cluster, front, "voice-0") == "voice-0@2")  # type: ignore[misc]
        assert http.delete(f"/v1/keys/{created['id']}").is_success
    for front in range(2):
        until(lambda front=front: status(cluster, front, created["key"]) == 401)  # type: ignore[misc]


def test_an_agent_that_is_killed_costs_its_streams_and_no_more(cluster: ClusterOfProcesses, voices: list[str]) -> None:
    with Load(cluster, [*voices, *voices], TOKENS) as load:
        until(lambda: len(load.outcomes) >= len(voices))
        agent = cluster.agents["a"]
        agent.kill()
        killed = time.monotonic()
        until(lambda: load.answered_since(killed + NO_LATER_S) >= 2 * len(voices))
        outcomes = load.end()
    lost = failed(outcomes)
    assert len(lost) <= 2 * len(voices), "no more than were open"
    assert {each.error for each in lost} <= {"engine_cut"}
    assert not [each for each in lost if each.began > killed + NO_LATER_S]
    agent.start()  # the engine that it left is adopted, or replaced
    cluster.until_agent_ready("a")
    until(lambda: cluster.engines() == {"a": "ready", "b": "ready"})


def test_an_engine_that_dies_with_its_agent_costs_its_streams_and_no_more(
    cluster: ClusterOfProcesses, voices: list[str]
) -> None:
    if not cluster.is_real:
        pytest.skip("the stub is no process of its agent's")
    agent = cluster.agents["b"]
    of_agent = [psutil.Process(agent.pid), *psutil.Process(agent.pid).children(recursive=True)]
    assert len(of_agent) > 1, "vLLM's processes are below it"
    with Load(cluster, [*voices, *voices], TOKENS) as load:
        until(lambda: len(load.outcomes) >= len(voices))
        kill_at_once(of_agent)
        killed = time.monotonic()
        until(lambda: load.answered_since(killed + NO_LATER_S) >= 2 * len(voices))
        outcomes = load.end()
    lost = failed(outcomes)
    assert len(lost) <= 2 * len(voices), "no more than were open"
    assert {each.error for each in lost} <= {"engine_cut"}
    assert not [each for each in lost if each.began > killed + NO_LATER_S]
    agent.kill()
    agent.start()
    cluster.until_agent_ready("b")
    until(lambda: cluster.engines() == {"a": "ready", "b": "ready"})


def test_nobody_waits_for_a_frozen_agent(cluster: ClusterOfProcesses, voices: list[str]) -> None:
    agent = cluster.agents["b"]
    with Load(cluster, [*voices, *voices], TOKENS) as load:
        until(lambda: len(load.outcomes) >= len(voices))
        agent.signal(signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            until(lambda: load.answered_since(frozen + SILENCE_S + NO_LATER_S) >= 2 * len(voices))
            outcomes = load.end()
        finally:
            agent.signal(signal.SIGCONT)
    lost = failed(outcomes)
    assert {each.error for each in lost} <= {"engine_cut"}
    assert len(lost) <= 2 * len(voices)
    assert all(each.ended < frozen + 2 * SILENCE_S for each in lost), "their own time limit is days"
    until(lambda: cluster.engines() == {"a": "ready", "b": "ready"})


def test_fronts_go_on_while_the_gateway_is_killed_and_nothing_is_lost(
    cluster: ClusterOfProcesses, voices: list[str]
) -> None:
    until(lambda: all(unreported(cluster, front) == 0 for front in range(2)))
    before = requests_counted(cluster)
    with Load(cluster, voices, TOKENS) as load:
        until(lambda: len(load.outcomes) >= len(voices))
        cluster.gateway.kill()
        killed = time.monotonic()
        until(lambda: load.answered_since(killed) >= 2 * len(voices))
        with cluster.front(0) as http:
            assert http.get("/v1/adapters").status_code == 503
        cluster.restart_gateway()
        restarted = time.monotonic()
        until(lambda: load.answered_since(restarted) >= len(voices))
        outcomes = load.end()
    assert failed(outcomes) == []
    until(lambda: all(unreported(cluster, front) == 0 for front in range(2)))
    assert requests_counted(cluster) - before == len(outcomes)


def unreported(cluster: ClusterOfProcesses, front: int) -> int:
    with cluster.front(front) as http:
        return int(http.get("/readyz").json()["unreported_rows"])


def test_a_front_that_is_killed_costs_its_streams_and_gives_back_what_it_took(
    cluster: ClusterOfProcesses, voices: list[str]
) -> None:
    key = str(cluster.gateway.create_key(name="k", scopes=["infer"], limits={"concurrent": 1})["key"])
    until(lambda: status(cluster, 1, key) == 200)
    until(lambda: status(cluster, 0, key) == 200)
    with Load(cluster, voices, TOKENS) as load, ThreadPoolExecutor(1) as pool:
        until(lambda: len(load.outcomes) >= len(voices))
        held = pool.submit(asked_until_cut, cluster, key)
        until(lambda: status(cluster, 1, key) == 429)
        cluster.fronts[0].kill()
        killed = time.monotonic()
        until(lambda: load.answered_since(killed) >= 2 * len(voices))
        assert held.result() == "transport"
        until(lambda: status(cluster, 1, key) == 200)
        outcomes = load.end()
    assert not [each for each in failed(outcomes) if each.front == 1], "the other front's streams go on"
    cluster.fronts[0].start()
    until(lambda: is_ready(cluster.fronts[0].port), cluster.fronts[0])


def asked_until_cut(cluster: ClusterOfProcesses, key: str) -> str:
    body = {"model": "voice-1", "prompt": "Hello", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    try:
        with cluster.front(0, key) as http:
            while True:
                with http.stream("POST", "/v1/completions", json=body) as answer:
                    if answer.status_code == 429:  # the one before is over, and the gateway does not know it yet
                        continue
                    for _ in answer.iter_lines():
                        continue
                    return "whole"
    except httpx.TransportError:
        return "transport"


def test_a_frozen_front_gives_back_what_it_took(cluster: ClusterOfProcesses, voices: list[str]) -> None:
    key = str(cluster.gateway.create_key(name="k", scopes=["infer"], limits={"concurrent": 1})["key"])
    for front in range(2):
        until(lambda front=front: status(cluster, front, key) == 200)  # type: ignore[misc]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(asked_until_cut, cluster, key)
        until(lambda: status(cluster, 1, key) == 429)
        cluster.fronts[0].signal(signal.SIGSTOP)
        try:
            until(lambda: status(cluster, 1, key) == 200)
        finally:
            cluster.fronts[0].signal(signal.SIGCONT)
        assert held.result() in ("transport", "whole")
    until(lambda: is_ready(cluster.fronts[0].port), cluster.fronts[0])
    until(lambda: status(cluster, 0, key) == 200)


def test_nobody_waits_for_a_frozen_gateway(cluster: ClusterOfProcesses, voices: list[str]) -> None:
    process = cluster.gateway.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        with cluster.front(0) as http:
            waited = http.get("/v1/adapters")
            assert waited.status_code in (502, 503), waited.text
            assert waited.json()["error"]["code"] in ("gateway_cut", "gateway_unavailable")
            until(lambda: http.get("/v1/adapters").status_code == 503)
        assert served_by(cluster, 0, "voice-1") == "voice-1@1", "what a front answers itself, it answers"
    finally:
        process.send_signal(signal.SIGCONT)
    with cluster.front(0) as http:
        until(lambda: http.get("/v1/adapters").status_code == 200)
