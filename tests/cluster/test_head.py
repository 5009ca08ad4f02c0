"""Ray's head dies with all that runs on it, where what GCS knows is in Redis, and comes back."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.ray_cluster import BASE_NAME, ENTRIES, NEEDS_RAY, RayCluster, running
from tests.support.cluster import Load, until
from tests.support.gateway import held_port

REDIS = shutil.which("redis-server")
pytestmark = [*NEEDS_RAY, pytest.mark.skipif(REDIS is None, reason="needs redis-server (Debian: redis-server)")]
NODES = ("127.0.0.3", "127.0.0.4")
AWAY_S = 20.0
"""How long there is no head: what starts it again, and Ray's own start, take less."""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """A Redis that nothing but these tests uses."""
    with held_port() as held:
        port = int(held.getsockname()[1])
    command = [str(REDIS), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(tmp_path), "--save", ""]
    with (tmp_path / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        yield f"127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def cluster(redis: str, tmp_path: Path) -> Iterator[RayCluster]:
    """A head without agents, and a node for each agent."""
    (tmp_path / "home").mkdir()
    with running(tmp_path / "home", *NODES, redis=redis) as made:
        yield made


def test_a_heads_death_fails_nobody_and_its_successor_finds_all_as_it_was(cluster: RayCluster) -> None:
    agents = {agent.pid for agent in cluster.agents()}
    assert len(agents) == len(ENTRIES)
    with Load(cluster, [BASE_NAME] * 8, 24) as load:
        until(lambda: len(load.outcomes) >= 16)
        cluster.kill_head()
        killed = time.monotonic()
        until(lambda: time.monotonic() - killed > AWAY_S)
        cluster.replace_head()
        until(lambda: set(NODES) <= cluster.living_nodes())
        until(cluster.is_settled)
        back = time.monotonic()
        until(lambda: load.answered_since(back) >= 16)
        outcomes = load.end()
    print(f"Serve knew all of it again {back - killed:.1f} s after the kill; {len(outcomes)} streams")
    assert [each.error for each in outcomes if each.error is not None] == []
    assert {agent.pid for agent in cluster.agents()} == agents, "the same agents go on"
    cluster.command("down")
    until(lambda: not cluster.agents())
