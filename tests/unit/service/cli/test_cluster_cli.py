"""`hatrack agent`, `hatrack front` and what `hatrack status` says of fronts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.server.instance import InstanceLock
from tests.support.adapters import make_base
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
