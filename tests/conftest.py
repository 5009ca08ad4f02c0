"""What every tier shares: the prepared base model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The real base model's checkpoint, prepared once from its package (about 20 s) and kept under var/."""
    path = REPO / "var" / "base" / BASE
    if not (path / "config.json").exists():
        command = [sys.executable, "-m", "trainer.base_model", "--source", BASE, "--dest", str(path.parent)]
        subprocess.run(command, check=True, timeout=300, cwd=REPO)
    return path
