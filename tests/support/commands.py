"""The `hatrack` command, run as a process in a gateway's environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.gateway import Gateway

REPO: Final = Path(__file__).parents[2]


def run_hatrack(
    gateway: Gateway, *arguments: str, stdin: str | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run `hatrack` to its end, whatever its exit code; `settings` are further environment variables.

    How long it takes depends on the machine, so the one limit is the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        input=stdin,
        env=gateway.environment | settings,
        capture_output=True,
        text=True,
        cwd=REPO,
        check=False,
    )


def hatrack(gateway: Gateway, *arguments: str, code: int = 0) -> str:
    """What `hatrack` prints. Fails where its exit code is not `code`."""
    done = run_hatrack(gateway, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
