"""`hatrack agent`, `hatrack front` and what `hatrack status` says of fronts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.cli.agent import hold_folder
from service.cli.cluster import IMPORT_PATH, is_closed, others, shown
from service.cli.main import app
from service.config import load_settings
from service.server.instance import InstanceLock
from tests.conftest import REPO
from tests.support.adapters import make_base
from tests.support.http import serving
from tests.support.waiting import wait_until
from tests.unit.service.wire import KEY, running

SECRET = "a-secret-of-16-characters"


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"HOME": tmp_path / "home", "BASE_MODEL": make_base(tmp_path / "base"), "ENGINE_DEVICE": "cpu"}
    for name, value in given.items():
        monkeypatch.setenv(f"HATRACK_{name}", str(value))
    monkeypatch.setenv("HATRACK_ENGINE_URL", f"unix:{tmp_path / 'e.sock'}")


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def test_an_agent_without_a_secret_does_not_start() -> None:
    assert "HATRACK_AGENT_KEY must be set" in refused("agent")


def test_two_agents_of_one_name_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_AGENT_KEY", SECRET)
    lock = InstanceLock(tmp_path / "home" / "agents" / "b", "hatrack agent --name b")
    try:
        assert "`hatrack agent --name b` (process" in refused("agent", "--name", "b", "--port", "0")
    finally:
        lock.release()


def test_an_agent_does_not_take_a_socket_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_AGENT_KEY", SECRET)
    (tmp_path / "a.sock").write_text("mine")
    assert "is not a socket" in refused("agent", "--uds", str(tmp_path / "a.sock"))
    assert (tmp_path / "a.sock").read_text() == "mine"


def test_an_agent_is_not_announced_at_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_AGENT_KEY", SECRET)
    monkeypatch.setenv("HATRACK_AGENT_ANNOUNCE", "http://127.0.0.1:1")
    assert "HATRACK_AGENT_URL must be set" in refused("agent", "--host", "::", "--port", "0")


def test_agents_that_the_gateway_names_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_AGENT_KEY", SECRET)
    monkeypatch.setenv("HATRACK_AGENT_ANNOUNCE", "http://127.0.0.1:1")
    held = [hold_folder(load_settings(), None) for _ in range(2)]
    folders = [settings.engine_dir for settings, _ in held]
    assert [folder.name.rpartition("-")[2] for folder in folders] == ["0", "1"]
    assert {folder.parent for folder in folders} == {tmp_path / "home" / "agents"}
    held[0][1].release()
    again, lock = hold_folder(load_settings(), None)
    assert again.engine_dir == folders[0], "with what is in its cache"
    for each in (lock, held[1][1]):
        each.release()


def test_an_agent_writes_down_where_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_AGENT_KEY", SECRET)
    file = tmp_path / "address"
    command = [sys.executable, "-m", "service.cli", "agent", "--port", "0", "--address-file", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(file.exists, "it listens")
    answer = httpx.get(f"{file.read_text()}/healthz", timeout=60)
    assert answer.json()["status"] == "ok"
    process.terminate()
    process.wait()


def test_a_cluster_without_ray_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.cluster.find_spec", lambda _name: None)
    for arguments in (("up", str(REPO / "deploy/ray/serve.yaml")), ("status",), ("down",)):
        assert "pip install 'hatrack[cluster]'" in refused("cluster", *arguments)


def test_ray_is_not_opened_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.cluster.find_spec", lambda _name: True)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = str(REPO / "deploy/ray/serve.yaml")
    assert "RAY_AUTH_MODE is disabled" in refused("cluster", "up", config, "--head", "10.0.0.5")


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "::", "8.8.8.8", "2606:4700::1111", "head.example.com", "224.0.0.1"],  # noqa: S104  (what is refused)
)
def test_ray_is_not_opened_to_the_internet(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("service.cli.cluster.find_spec", lambda _name: True)
    shown = refused("cluster", "up", str(REPO / "deploy/ray/serve.yaml"), "--head", address)
    assert (
        f"must be a loopback or private IP address of this machine, such as 127.0.0.1 or 10.0.0.5; got '{address}'"
        in shown
    )


@pytest.mark.parametrize("address", ["127.0.0.2", "10.0.0.5", "192.168.1.4", "100.64.0.7", "::1", "fd00::1"])
def test_ray_may_listen_on_a_private_network(address: str) -> None:
    assert is_closed(address)


@contextmanager
def dashboard_of(*applications: tuple[str, str, str]) -> Iterator[tuple[str, list[str]]]:
    """Ray's dashboard, which has applications of these names, import paths and sources; and what it was asked for."""
    asked: list[str] = []
    shown = {
        name: {"name": name, "status": "RUNNING", "source": source, "deployed_app_config": {"import_path": path}}
        for name, path, source in applications
    }

    def answer(method: str, path: str, _body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        asked.append(f"{method} {path}")
        return 200, json.dumps({"applications": shown}).encode() if method == "GET" else b"", {}

    with serving(answer) as url:
        yield url, asked


def test_why_agents_do_not_start_is_shown_without_where_in_the_code() -> None:
    trace = "Traceback (most recent call last):\n  File x\n"
    why = "service.cluster.replica.AgentFailed: the agent was not in use after 20 s"
    deployments = {"agent": {"message": f"It failed to start 6 times. Error:\n{trace}{why}\n", "replicas": []}}
    told = {"name": "qwen", "status": "DEPLOY_FAILED", "message": "Failed to update.", "deployments": deployments}
    (application,) = shown([told])["applications"]
    assert application["message"] == f"Failed to update. It failed to start 6 times. Error: {why}"


def test_what_else_runs_on_serve_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.cluster.find_spec", lambda _name: True)
    config, ours = str(REPO / "deploy/ray/serve.yaml"), ("former", IMPORT_PATH, "declarative")
    with dashboard_of(ours, ("search", "search.app:app", "declarative")) as (url, asked):
        assert "Serve would end what" in refused("cluster", "up", config, "--dashboard", url)
        assert "which also runs search;" in refused("cluster", "down", "--dashboard", url)
        assert {line.partition(" ")[0] for line in asked} == {"GET"}
    with dashboard_of(ours, ("search", "", "imperative")) as (url, asked):
        up = CliRunner().invoke(app, ["cluster", "up", config, "--no-wait", "--dashboard", url])
        assert up.exit_code == 0, "a config ends nothing that was not deployed by one"
        assert "which also runs search;" in refused("cluster", "down", "--dashboard", url)
        assert [line.partition(" ")[0] for line in asked] == ["GET", "PUT", "GET"]
    with dashboard_of(ours) as (url, asked):
        assert CliRunner().invoke(app, ["cluster", "down", "--dashboard", url]).exit_code == 0
        assert [line.partition(" ")[0] for line in asked] == ["GET", "DELETE"]


class Deploying:
    """Ray's dashboard, whose application is in each of these states in turn, and stays in the last; it fails with
    500, and cuts the connection for None."""

    def __init__(self, *states: str | int | None) -> None:
        self._states = list(states)
        self.methods: list[str] = []

    def answer(self, method: str, _path: str, _body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        self.methods.append(method)
        if "PUT" not in self.methods or method == "PUT":
            return 200, b'{"applications": {}}', {}
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if state is None:
            raise ConnectionResetError
        if isinstance(state, int):
            return state, b"the head starts", {}
        why = {"agent": {"message": "Resources required for each replica: {'GPU': 1.0}", "replicas": []}}
        application = {"name": "qwen", "status": state, "deployments": why, "source": "declarative"}
        return 200, json.dumps({"applications": {"qwen": application}}).encode(), {}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Serve config with one application."""
    monkeypatch.setattr("service.cli.cluster.find_spec", lambda _name: True)
    monkeypatch.setattr("service.cli.cluster.POLL_S", 0.01)
    (tmp_path / "serve.yaml").write_text(f"applications: [{{name: qwen, import_path: '{IMPORT_PATH}'}}]\n")
    return str(tmp_path / "serve.yaml")


def test_a_deployment_that_does_not_settle_is_left_after_the_timeout(config: str) -> None:
    dashboard = Deploying("DEPLOYING")
    with serving(dashboard.answer) as url:
        shown = refused("cluster", "up", config, "--timeout", "1", "--dashboard", url)
    assert "not all agents are in use, and for 1 s none has come or gone" in shown
    assert "Serve says: qwen: Resources required for each replica: {'GPU': 1.0}" in shown
    assert set(dashboard.methods) == {"GET", "PUT"}, "it is not ended"


def test_a_dashboard_that_is_away_for_a_moment_does_not_end_the_wait(config: str) -> None:
    dashboard = Deploying("DEPLOYING", 503, None, "DEPLOYING", "RUNNING")
    with serving(dashboard.answer) as url:
        up = CliRunner().invoke(app, ["cluster", "up", config, "--dashboard", url])
    shown = " ".join(up.output.split())
    assert up.exit_code == 0, up.output
    assert "waiting: Ray Serve fails with status 503: the head starts" in shown
    assert "waiting: Ray's dashboard does not answer" in shown
    assert "RUNNING qwen" in shown


def test_a_dashboard_that_refuses_ends_the_wait_at_once(config: str) -> None:
    with serving(Deploying("DEPLOYING", 403).answer) as url:
        assert "asks for the cluster's token" in refused("cluster", "up", config, "--dashboard", url)


def test_an_application_that_is_being_deleted_is_nobodys() -> None:
    deleting = {"status": "DELETING", "source": "declarative", "deployed_app_config": None}
    assert others({"qwen": deleting, "search": {**deleting, "status": "RUNNING"}}, "declarative") == ["search"]


def test_a_dashboard_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.cluster.find_spec", lambda _name: True)
    assert "does not answer at http://127.0.0.1:1" in refused("cluster", "status", "--dashboard", "http://127.0.0.1:1")


def test_a_front_that_is_not_told_its_gateway_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HATRACK_FRONT_GATEWAY must be set" in refused("front")
    monkeypatch.setenv("HATRACK_FRONT_GATEWAY", "http://127.0.0.1:1")
    assert "HATRACK_FRONT_KEY must be set" in refused("front")
    monkeypatch.setenv("HATRACK_FRONT_GATEWAY", "127.0.0.1:1")
    assert "HATRACK_FRONT_GATEWAY" in refused("front", "--port", "0")


def test_status_lists_the_fronts(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as gateway:
        fronts = [{"name": "one:8010", "since": 1.0}, {"name": "two:8010", "since": 2.0}]
        gateway.readiness = (200, {"status": "ready", "engine": {"state": "ready"}, "fronts": fronts})
        monkeypatch.setenv("HATRACK_URL", gateway.url)
        monkeypatch.setenv("HATRACK_KEY", KEY)
        shown = CliRunner().invoke(app, ["status"]).output
        assert [line.split() for line in shown.splitlines() if line.startswith("front")] == [
            ["front", "one:8010", "connected"],
            ["front", "two:8010", "connected"],
        ]
