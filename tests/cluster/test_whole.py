"""All parts at once, eight streams without pause: what each death, each outage and an update costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.base import describe
from tests.cluster.ray_cluster import ENTRIES, NEEDS_RAY, kill
from tests.cluster.whole import NODES, WholeCluster, running
from tests.support.adapters import make_adapter
from tests.support.cluster import Load, Outcome, until

pytestmark = NEEDS_RAY
VOICES = 4
TOKENS = 24
NO_LATER_S = 3.0
"""After so long nothing fails any more that was asked of what is left."""
CUT = {"engine_cut"}
"""How the streams of an engine end whose agent has died."""
GONE = {"transport", "status 502"}
"""How the requests of a front end that has died, behind HAProxy."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeCluster]:
    with running(tmp_path_factory.mktemp("whole")) as made:
        yield made


@pytest.fixture(scope="module")
def voices(cluster: WholeCluster, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Adapters over both engines."""
    root = tmp_path_factory.mktemp("voices")
    names = [f"voice-{number}" for number in range(VOICES)]
    for number, name in enumerate(names):
        push(cluster, root, name, number)
    return names


def push(cluster: WholeCluster, root: Path, name: str, seed: int) -> int:
    """Push an adapter; returns the status."""
    about = describe(cluster.base_dir, served_name="x", dtype="bfloat16", quantization=None, engine_version="0")
    make_adapter(root / name, about, seed=seed, scale=0.02)
    return cluster.gateway.push(name, root / name).status_code


def loaded(cluster: WholeCluster, voices: list[str]) -> Load:
    return Load(cluster, [*voices, *voices], TOKENS)


def failed(outcomes: list[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if each.error is not None]


def check_costs_open_streams_alone(outcomes: list[Outcome], before: float, after: float, errors: set[str]) -> None:
    """What failed was open when something was killed, between these two moments, or began just then."""
    lost = failed(outcomes)
    print(f"{len(lost)} of {len(outcomes)} failed: {sorted({str(each.error) for each in lost})}")
    assert {each.error for each in lost} <= errors
    assert [each for each in lost if each.ended < before or each.began > after + NO_LATER_S] == []
    assert len(lost) <= 2 * VOICES, "no more than were open"


def test_adapters_come_from_the_bucket_to_nodes_that_share_nothing(cluster: WholeCluster, voices: list[str]) -> None:
    assert {replica["node_ip"] for replica in cluster.replicas()} == set(NODES)
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= 4 * VOICES)
        outcomes = load.end()
    assert failed(outcomes) == []
    for node in NODES:
        assert list(cluster.node_home(node).rglob("adapter_model.safetensors")), "of the voices, some on each"
    assert not (cluster.home / "hatrack.db").exists()


def test_an_agents_death_costs_its_streams(cluster: WholeCluster, voices: list[str]) -> None:
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= VOICES)
        victim = cluster.agents()[0]
        before = time.monotonic()
        kill(victim)
        killed = time.monotonic()
        until(lambda: len({each.pid for each in cluster.agents()} - {victim.pid}) == 2 and cluster.is_settled())
        back = time.monotonic()
        until(lambda: load.answered_since(back) >= 2 * VOICES)
        outcomes = load.end()
    check_costs_open_streams_alone(outcomes, before, killed, CUT)


def test_a_fronts_death_costs_its_streams(cluster: WholeCluster, voices: list[str]) -> None:
    front = cluster.fronts[0]
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= VOICES)
        before = time.monotonic()
        front.kill()
        killed = time.monotonic()
        until(lambda: load.answered_since(killed + NO_LATER_S) >= 4 * VOICES)
        front.start()
        cluster.until_fronts_are_used()
        back = time.monotonic()
        until(lambda: load.answered_since(back) >= 2 * VOICES)
        outcomes = load.end()
    check_costs_open_streams_alone(outcomes, before, killed, GONE)


def test_the_controllers_death_costs_nothing(cluster: WholeCluster, voices: list[str]) -> None:
    (controller,) = [each for each in cluster.ray_processes() if each.name().startswith("ray::ServeContr")]
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= VOICES)
        kill(controller)
        killed = time.monotonic()
        until(cluster.is_settled)
        until(lambda: load.answered_since(killed) >= 4 * VOICES)
        outcomes = load.end()
    assert failed(outcomes) == []


def counted(cluster: WholeCluster) -> int:
    """The requests that the gateway has counted, once the fronts have reported theirs."""
    for number in range(len(cluster.fronts)):
        with cluster.one_front(number) as http:
            until(lambda http=http: http.get("/readyz").json()["unreported_rows"] == 0)  # type: ignore[misc]
    with cluster.gateway.http() as http:
        return sum(row["requests"] for row in http.get("/v1/usage").json()["data"])


def test_without_the_database_answers_go_on_and_nothing_is_written(cluster: WholeCluster, voices: list[str]) -> None:
    limited = {"requests_per_minute": 100_000, "concurrent": 4}
    key = str(cluster.gateway.create_key(name="limited", scopes=["infer"], limits=limited)["key"])
    until(lambda: all(asked(cluster, number, key) == 200 for number in range(len(cluster.fronts))))
    before = counted(cluster)
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= VOICES)
        cluster.database.shut()
        away = time.monotonic()
        try:
            until(lambda: load.answered_since(away) >= 4 * VOICES)
            with cluster.front(0) as http:
                refused = http.post("/v1/keys", json={"name": "new", "scopes": ["infer"]})
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error"), refused.text
            assert [asked(cluster, number, key) for number in range(len(cluster.fronts))] == [200, 200]
        finally:
            cluster.database.open()
        until(lambda: written(cluster))
        outcomes = load.end()
    assert failed(outcomes) == []
    until(lambda: counted(cluster) == before + len(outcomes) + len(cluster.fronts))


def asked(cluster: WholeCluster, number: int, key: str) -> int:
    with cluster.one_front(number) as http:
        body = {"model": "voice-0", "prompt": "Hello", "max_tokens": 1}
        return http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}).status_code


def written(cluster: WholeCluster) -> bool:
    with cluster.front(0) as http:
        return http.post("/v1/keys", json={"name": "new", "scopes": ["infer"]}).is_success


def test_without_the_bucket_what_the_nodes_have_is_answered(
    cluster: WholeCluster, voices: list[str], tmp_path: Path
) -> None:
    with loaded(cluster, voices) as load:
        until(lambda: {each.model for each in load.outcomes} == set(voices))
        cluster.bucket.shut()
        away = time.monotonic()
        try:
            until(lambda: load.answered_since(away) >= 4 * VOICES)
            assert push(cluster, tmp_path, "late", 9) == 503
        finally:
            cluster.bucket.open()
        until(lambda: push(cluster, tmp_path, "late", 9) in (200, 201))
        outcomes = load.end()
    assert failed(outcomes) == []


def test_an_update_of_agents_and_fronts_fails_nobody(cluster: WholeCluster, voices: list[str]) -> None:
    until(cluster.is_settled)
    before = {agent.pid for agent in cluster.agents()}
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= VOICES)
        cluster.up(HATRACK_QUEUE_SIZE="512")
        until(lambda: cluster.ready() == set(ENTRIES))
        for front in cluster.fronts:
            front.stop()
            front.start()
            cluster.until_fronts_are_used()
        updated = time.monotonic()
        until(lambda: load.answered_since(updated) >= 2 * VOICES)
        outcomes = load.end()
    assert failed(outcomes) == []
    assert not before & {agent.pid for agent in cluster.agents()}


def test_a_nodes_death_costs_its_streams_and_the_other_takes_its_agent(
    cluster: WholeCluster, voices: list[str]
) -> None:
    until(cluster.is_settled)
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= 2 * VOICES)
        before = time.monotonic()
        cluster.kill_node(NODES[1])
        killed = time.monotonic()
        until(lambda: load.answered_since(killed) >= 4 * VOICES)
        until(lambda: {replica.get("node_ip") for replica in cluster.replicas()} == {NODES[0]})
        until(cluster.is_settled)
        back = time.monotonic()
        until(lambda: load.answered_since(back) >= 2 * VOICES)
        outcomes = load.end()
    check_costs_open_streams_alone(outcomes, before, killed, CUT)
