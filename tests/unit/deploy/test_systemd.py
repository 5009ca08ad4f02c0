"""The systemd units: systemd accepts them, they run commands and set variables that exist, and fit together; and the
pages of this folder link to what is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from service.cli.main import app
from service.config import Settings
from service.server.instance import STOP_TIMEOUT_S
from tests.conftest import REPO
from tests.support.system import program

UNITS = REPO / "deploy" / "systemd"
PAGES = sorted((REPO / "deploy").glob("*.md"))
INSTALLED = "/opt/hatrack/.venv/bin/hatrack"


def lines(unit: str) -> Iterator[tuple[str, str, str]]:
    """(section, name, value) of each line; a name may stand in several."""
    section = ""
    for line in (UNITS / f"{unit}.service").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield section, name, value


def values(unit: str, name: str) -> list[str]:
    return [value for _, known, value in lines(unit) if known == name]


def environment(unit: str) -> dict[str, str]:
    pairs = [pair.partition("=") for value in values(unit, "Environment") for pair in shlex.split(value)]
    return {name: value for name, _, value in pairs}


def command(unit: str) -> list[str]:
    [line] = values(unit, "ExecStart")
    return shlex.split(line)


def test_systemd_accepts_them(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    paths = []
    for unit in UNITS.glob("*.service"):
        paths.append(tmp_path / unit.name)
        # it looks whether the program is there
        paths[-1].write_text(unit.read_text().replace(INSTALLED, sys.executable))
    done = subprocess.run([analyze, "verify", *map(str, paths)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "hatrack" in line]
    assert (done.returncode, ours) == (0, [])
    assert len(paths) == 4


@pytest.mark.parametrize("unit", ["hatrack", "hatrack-engine", "hatrack-agent", "hatrack-front"])
def test_what_they_run_and_set_exists(unit: str) -> None:
    path, name, *options = command(unit)
    assert path == INSTALLED
    found = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {option for option in options if option.startswith("--")} <= known
    settings = {f"HATRACK_{field.upper()}" for field in Settings.model_fields}
    assert {variable for variable in environment(unit) if variable.startswith("HATRACK_")} <= settings
    assert values(unit, "User") == ["hatrack"]
    assert values(unit, "EnvironmentFile") == ["-/etc/hatrack/hatrack.env"]


@pytest.mark.parametrize("unit", ["hatrack", "hatrack-agent", "hatrack-front"])
def test_requests_may_go_on_before_systemd_kills(unit: str) -> None:
    [patience] = values(unit, "TimeoutStopSec")
    rest_s = 0 if unit == "hatrack-front" else STOP_TIMEOUT_S
    assert int(patience) > Settings.model_fields["drain_s"].default + rest_s


def test_the_gateway_finds_the_engine_and_its_store() -> None:
    socket = command("hatrack-engine")[-1]
    assert environment("hatrack")["HATRACK_ENGINE_URL"] == f"unix:{socket}"
    assert environment("hatrack")["HATRACK_HOME"] == environment("hatrack-engine")["HATRACK_HOME"]
    [runtime] = values("hatrack-engine", "RuntimeDirectory")
    assert Path(socket).parent == Path("/run") / runtime
    assert not values("hatrack", "RuntimeDirectory"), "a unit that stops removes it, with the other's socket"


def test_the_gateway_starts_after_its_engine_or_agent_and_starts_neither() -> None:
    """With Wants=, a restart of the gateway would start the engine, which stops the agent in its place (Conflicts=)."""
    assert values("hatrack-agent", "Conflicts") == ["hatrack-engine.service"]
    [after] = values("hatrack", "After")
    assert {"hatrack-engine.service", "hatrack-agent.service"} <= set(after.split())
    for unit in ("hatrack", "hatrack-engine", "hatrack-agent", "hatrack-front"):
        for pulls in ("Wants", "Requires", "Requisite", "BindsTo", "Upholds"):
            assert not any("hatrack" in value for value in values(unit, pulls)), (unit, pulls)


def test_the_agents_page_names_the_socket_of_its_unit() -> None:
    socket = command("hatrack-agent")[-1]
    [runtime] = values("hatrack-agent", "RuntimeDirectory")
    assert Path(socket).parent == Path("/run") / runtime
    assert f"HATRACK_ENGINE_AGENT=unix:{socket}" in (REPO / "deploy" / "AGENTS.md").read_text()
    assert environment("hatrack")["HATRACK_HOME"] == environment("hatrack-agent")["HATRACK_HOME"]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_what_the_pages_say_of_commands_exists() -> None:
    """Every `hatrack COMMAND` in a page is one of the command's."""
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for page in PAGES:
        named = set(re.findall(r"`hatrack ([a-z]+(?:-[a-z]+)*)", page.read_text()))
        assert named <= known, page.name
