"""A node of Ray's dies with all that runs on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from statistics import median

import psutil
import pytest

from tests.cluster.ray_cluster import BASE_NAME, ENTRIES, NEEDS_RAY, RayCluster, is_agent, running
from tests.support.cluster import Load, until

pytestmark = NEEDS_RAY
NODES = ("127.0.0.3", "127.0.0.4")
SILENCE_S = 10.0
"""HATRACK_AGENT_TIMEOUT_S."""
NO_LATER_S = 3.0
"""After so long nothing fails any more that was asked of what is left."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head without agents, and a node for each agent."""
    with running(tmp_path_factory.mktemp("nodes"), *NODES) as made:
        yield made


def test_a_nodes_death_costs_its_streams_and_the_other_takes_its_agent(cluster: RayCluster) -> None:
    places = {replica["node_ip"] for replica in cluster.replicas()}
    assert places == set(NODES), "Serve spreads them"
    assert cluster.ready() == set(ENTRIES)
    with Load(cluster, [BASE_NAME] * 8, 24) as load:
        until(lambda: len(load.outcomes) >= 16)
        before_kill = time.monotonic()
        cluster.kill_node(NODES[1])
        killed = time.monotonic()
        until(lambda: load.answered_since(killed) >= 32)
        until(lambda: {replica.get("node_ip") for replica in cluster.replicas()} == {NODES[0]})
        until(cluster.is_settled)
        back = time.monotonic()
        until(lambda: load.answered_since(back) >= 16)
        outcomes = load.end()
    failed = [each for each in outcomes if each.error is not None]
    print(f"in use again after {back - killed:.1f} s; {len(failed)} of {len(outcomes)} streams failed")
    assert {each.error for each in failed} <= {"engine_cut"}
    beyond = [each for each in failed if each.began > killed or each.ended < before_kill]
    assert beyond == [], "it costs the streams that were open on it"
    assert {replica["node_ip"] for replica in cluster.replicas() if replica["state"] == "RUNNING"} == {NODES[0]}


def test_nobody_waits_for_a_frozen_node_and_the_other_takes_its_agent(cluster: RayCluster) -> None:
    cluster.command("down")
    until(lambda: not cluster.agents())
    cluster.replace_node(NODES[1])
    cluster.up()
    assert {replica["node_ip"] for replica in cluster.replicas()} == set(NODES), "Serve spreads them"
    with Load(cluster, [BASE_NAME] * 8, 24) as load:
        until(lambda: len(load.outcomes) >= 16)
        frozen = time.monotonic()
        node = cluster.freeze_node(NODES[1])
        (agent,) = (each for each in node if is_agent(each))
        until(lambda: load.answered_since(frozen + SILENCE_S + NO_LATER_S) >= 16)
        until(lambda: {replica.get("node_ip") for replica in cluster.replicas()} == {NODES[0]})
        until(cluster.is_settled)
        back = time.monotonic()
        for process in node:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        until(lambda: load.answered_since(back) >= 16)
        outcomes = load.end()
    failed = [each for each in outcomes if each.error is not None]
    longest = max(each.ended - each.began for each in outcomes)
    print(f"in use again after {back - frozen:.1f} s; {len(failed)} of {len(outcomes)} streams failed")
    print(f"the longest took {longest:.1f} s, half of them {median(each.ended - each.began for each in outcomes):.1f}")
    assert {each.error for each in failed} <= {"engine_cut"}
    assert [each for each in failed if each.began > frozen + SILENCE_S + NO_LATER_S] == []
    until(lambda: not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE)
    assert cluster.ready() == set(ENTRIES), "the one that was frozen has ended, and taken nobody's place"
