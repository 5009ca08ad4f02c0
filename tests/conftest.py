"""What every tier shares: the prepared base model, patience, and independence of the terminal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
BASE = "smollm2-135m-instruct"
TERMINAL = (
    *("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "TERMINAL_WIDTH", "_TYPER_FORCE_DISABLE_TERMINAL"),
)
SLOW = ("integration", "crash")
SLOW_TIMEOUT_S = 1500
"""Whichever test comes first pays for a shared engine, and for the voices that are trained for it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with an engine may take longer: how long theirs takes is the machine's affair."""
    for item in items:
        if any(item.path.is_relative_to(REPO / "tests" / tier) for tier in SLOW):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def _no_terminal() -> Iterator[None]:
    """With these rich and typer write escapes, or other widths, into what is no terminal."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TERMINAL:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The real base model's checkpoint, prepared once from its package (about 20 s) and kept under var/."""
    path = REPO / "var" / "base" / BASE
    if not (path / "config.json").exists():
        command = [sys.executable, "-m", "trainer.base_model", "--source", BASE, "--dest", str(path.parent)]
        subprocess.run(command, check=True, timeout=600, cwd=REPO)
    return path
