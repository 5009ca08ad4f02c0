"""The image's build and start without Docker: what the rehearsal reads of the Dockerfile, and the rehearsal itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.rehearsal import build
from deploy.rehearsal.build import Rehearsal, RehearsalFailed
from deploy.rehearsal.dockerfile import Health, expand, ignore_lines, instructions, is_sent, parse_health, seconds
from tests.conftest import REPO

REHEARSAL_S = 3600.0


def test_every_instruction_of_the_dockerfile_is_rehearsed(tmp_path: Path) -> None:
    named = {instruction for instruction, _ in instructions()}
    assert {"FROM", "RUN", "COPY", "HEALTHCHECK", "ENTRYPOINT"} <= named
    assert named <= Rehearsal(tmp_path, [], {}).known


def test_an_instruction_that_nobody_knows_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "instructions", lambda: [("ONBUILD", "RUN true")])
    with pytest.raises(RehearsalFailed, match="ONBUILD"):
        Rehearsal(tmp_path, [], {}).build()


def test_variables_are_replaced_as_in_a_build() -> None:
    values = {"KIND": "cpu", "PATH": "/bin"}
    assert expand("deploy/requirements-${KIND}.txt", values) == "deploy/requirements-cpu.txt"
    assert expand("/opt/.venv/bin:$PATH$NONE", values) == "/opt/.venv/bin:/bin"


def test_the_ignore_file_decides_what_the_build_sees() -> None:
    lines = ignore_lines()
    assert is_sent("service/cli/main.py", lines)
    assert is_sent("deploy/requirements-cpu.txt", lines)
    for kept_out in ("var/admin.key", "tests/conftest.py", "deploy/.env", "service/cli/__pycache__", ".git/config"):
        assert not is_sent(kept_out, lines), kept_out


@pytest.mark.parametrize(("text", "wanted"), [("15s", 15), ("5m", 300), ("1m30s", 90), ("500ms", 0.5)])
def test_durations_are_dockers(text: str, wanted: float) -> None:
    assert seconds(text) == pytest.approx(wanted)


def test_the_health_check_is_read_with_its_times() -> None:
    health = parse_health('--interval=15s --timeout=5s --retries=3 CMD ["python", "-c", "print(1)"]')
    assert health == Health(("python", "-c", "print(1)"), 15, 5)


@pytest.mark.slow
def test_the_image_is_built_started_found_healthy_and_stopped_without_docker() -> None:
    """pip finds what is installed here, and everything else runs as it stands: see `deploy/rehearsal`."""
    able = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False)
    if os.geteuid() != 0 or able.returncode != 0:
        pytest.skip("needs root and namespaces of its own")
    command = [sys.executable, "-m", "deploy.rehearsal", "--start"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=REHEARSAL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    steps = [line.split()[1] for line in lines if line[:2].strip().isdigit()]
    assert steps == [instruction for instruction, _ in instructions()]
    *_, healthy, ready, stopped = lines
    assert healthy.startswith("healthy after")
    assert ready.startswith("ready after")
    assert stopped.startswith("stopped by SIGTERM after")
