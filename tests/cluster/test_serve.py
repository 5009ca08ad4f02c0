"""Agents on Ray Serve, behind a real gateway: what a death and an update cost, and what the command says."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import httpx
import psutil
import pytest

from adapters.base import describe
from tests.cluster.ray_cluster import APPLICATION, ENTRIES, NEEDS_RAY, PYTHON, RayCluster, kill, running
from tests.conftest import REPO
from tests.support.adapters import make_adapter
from tests.support.cluster import Load, Outcome, until

pytestmark = NEEDS_RAY
VOICES = 4
TOKENS = 24


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with running(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def voices(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Adapters over both engines."""
    root = tmp_path_factory.mktemp("voices")
    about = describe(cluster.base_dir, served_name="x", dtype="bfloat16", quantization=None, engine_version="0")
    names = [f"voice-{number}" for number in range(VOICES)]
    for number, name in enumerate(names):
        make_adapter(root / name, about, seed=number, scale=0.02)
        pushed = cluster.gateway.push(name, root / name)
        assert pushed.status_code == 201, pushed.text
    return names


def failed(outcomes: list[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if each.error is not None]


def loaded(cluster: RayCluster, voices: list[str]) -> Load:
    """Two streams for each voice, without pause."""
    return Load(cluster, [*voices, *voices], TOKENS)


def test_agents_come_up_and_are_found(cluster: RayCluster, voices: list[str]) -> None:
    assert cluster.ready() == set(ENTRIES), "the command waits until they are in use"
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= 4 * len(voices))
    assert not failed(load.outcomes)


def test_the_command_says_how_they_are(cluster: RayCluster) -> None:
    told = cluster.status()
    (application,) = told["applications"]
    assert (application["name"], application["status"], application["wanted"]) == (APPLICATION, "RUNNING", 2)
    assert [replica["state"] for replica in application["replicas"]] == ["RUNNING"] * 2
    assert {engine["name"]: engine["state"] for engine in told["engines"]} == dict.fromkeys(ENTRIES, "ready")
    shown = cluster.command("status").stdout
    assert f"RUNNING  {APPLICATION}, 2 of 2 agents run" in shown
    assert shown.count("agent ") >= 2


ASK_WITHOUT_A_TOKEN = """
import sys, grpc
with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as channel:
    ask = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
    try:
        ask(b"", timeout=60)
        print("answered")
    except grpc.RpcError as error:
        print(error.code().name)
"""


def test_ray_and_the_agents_listen_on_loopback_and_ask_for_a_token_elsewhere(cluster: RayCluster) -> None:
    listening = {
        (ip_address(connection.laddr.ip), connection.laddr.port, process.name())
        for process in cluster.ray_processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    elsewhere = {(port, name) for address, port, name in listening if not is_loopback(address)}
    print(elsewhere)
    # Ray Serve's replicas listen on all addresses, whatever they are told
    assert {name for _, name in elsewhere} <= {f"ray::ServeReplica:{APPLICATION}:agent"}
    for port, _ in elsewhere:
        asked = [str(PYTHON), "-c", ASK_WITHOUT_A_TOKEN, str(port)]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "UNAUTHENTICATED\n"
    assert httpx.get(f"{cluster.dashboard}/api/serve/applications/", timeout=180).status_code == 401


def is_loopback(address: IPv4Address | IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def test_an_agent_that_is_killed_costs_its_streams_and_is_replaced(cluster: RayCluster, voices: list[str]) -> None:
    before = {replica["replica_id"] for replica in cluster.replicas()}
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= len(voices))
        victim = cluster.agents()[0]
        before_kill = time.monotonic()
        kill(victim)
        killed = time.monotonic()
        # not the two from before, one of which the gateway takes for ready until it sees the end of its session
        until(lambda: len({each.pid for each in cluster.agents()} - {victim.pid}) == 2 and cluster.is_settled())
        back = time.monotonic()
        until(lambda: load.answered_since(back) >= 2 * len(voices))
        outcomes = load.end()
    print(f"in use again after {back - killed:.1f} s; {len(failed(outcomes))} of {len(outcomes)} streams failed")
    open_then = [each for each in outcomes if each.began <= killed and each.ended >= before_kill]
    assert [each for each in failed(outcomes) if each not in open_then] == []
    assert {each.error for each in failed(outcomes)} <= {"engine_cut"}
    replaced = {replica["replica_id"] for replica in cluster.replicas() if replica["state"] == "RUNNING"}
    assert len(replaced & before) == 1, "Serve has replaced one replica"


def test_the_controllers_death_costs_nothing(cluster: RayCluster, voices: list[str]) -> None:
    until(cluster.is_settled)
    agents = {agent.pid for agent in cluster.agents()}
    (controller,) = [each for each in cluster.ray_processes() if each.name().startswith("ray::ServeContr")]
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= len(voices))
        kill(controller)
        killed = time.monotonic()
        until(cluster.is_settled)
        until(lambda: load.answered_since(killed) >= 4 * len(voices))
        outcomes = load.end()
    assert not failed(outcomes)
    assert {agent.pid for agent in cluster.agents()} == agents, "another controller has the same replicas"


def test_an_update_fails_nobody(cluster: RayCluster, voices: list[str]) -> None:
    until(cluster.is_settled)
    before = {agent.pid for agent in cluster.agents()}
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= len(voices))
        began = time.monotonic()
        cluster.up(HATRACK_QUEUE_SIZE="512")
        until(lambda: cluster.ready() == set(ENTRIES))
        updated = time.monotonic()
        until(lambda: load.answered_since(updated) >= 2 * len(voices))
        outcomes = load.end()
    print(f"updated in {updated - began:.1f} s; {len(failed(outcomes))} of {len(outcomes)} streams failed")
    assert not failed(outcomes)
    assert not before & {agent.pid for agent in cluster.agents()}, "both agents are others"


def test_an_update_to_what_the_gateway_cannot_use_replaces_one_agent_only(
    cluster: RayCluster, voices: list[str]
) -> None:
    until(cluster.is_settled)
    before = {agent.pid for agent in cluster.agents()}
    refused = cluster.up(start_s=10, HATRACK_ENGINE_MAX_RANK="8", check=False)
    assert refused.returncode == 1
    assert f"DEPLOY_FAILED  {APPLICATION}" in refused.stdout
    assert "the agent was not in use after 10 s" in " ".join(refused.stdout.split())
    until(lambda: {agent.pid for agent in cluster.agents()} < before)
    assert len(cluster.agents()) == 1
    with loaded(cluster, voices) as load:
        until(lambda: len(load.outcomes) >= 2 * len(voices))
    assert not failed(load.outcomes), "the other one answers for all"
    cluster.up()
    assert cluster.ready() == set(ENTRIES)


def test_the_queue_decides_how_many_there_are(cluster: RayCluster, voices: list[str]) -> None:
    at_once = {"upscale_delay_s": 1, "downscale_delay_s": 1, "metrics_interval_s": 0.5, "look_back_period_s": 2}
    policy = {"policy": {"policy_function": "service.cluster.replica:engines_for"}}
    # two places an engine: eight streams are more than one engine's, and none is fewer
    cluster.up(
        autoscaling={"min_replicas": 1, "max_replicas": 2, **at_once, **policy},
        HATRACK_ADMISSION_WIDTH="2",
        HATRACK_ENGINE_MAX_SEQS="2",
    )
    until(lambda: len(cluster.ready()) == 1)
    with loaded(cluster, voices) as load:
        until(lambda: cluster.ready() == set(ENTRIES))
        grown = time.monotonic()
        until(lambda: load.answered_since(grown) >= 2 * len(voices))
        outcomes = load.end()
    until(lambda: len(cluster.ready()) == 1 and len(cluster.agents()) == 1)
    assert not failed(outcomes)


def test_rays_token_is_its_users_alone(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(REPO), "PATH": os.environ["PATH"]}
    make = "import os; os.umask(0o022); from service.cli.cluster import make_token; make_token()"
    subprocess.run([str(PYTHON), "-c", make], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_config_that_cannot_be_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("applications: 3")
    refused = cluster.command("up", str(path), check=False)
    assert refused.returncode == 1
    assert "it must have `applications`" in " ".join(refused.stderr.split())


def test_down_ends_the_agents_and_nothing_else(cluster: RayCluster, voices: list[str]) -> None:
    cluster.command("down")
    until(lambda: not cluster.agents())
    until(lambda: not cluster.ready())
    shown = cluster.command("status", "--json", check=False)
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["applications"] == []
    assert cluster.gateway.listens()
