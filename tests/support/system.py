"""Programs of the operating system that tests run. Where one is missing, the test says what to install."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "promtool": "prometheus",
    "docker-compose": "docker-compose",
    "curl": "curl",
    "systemd-analyze": "systemd",
    "libseccomp.so.2": "libseccomp2",
}
"""The Debian package of each program, and of the one library, that a test runs; `.ci/run` installs them."""


def program(name: str) -> str:
    """The path of a program. Where it is missing the test is skipped, and in CI it fails."""
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is not installed: apt-get install {PACKAGES[name]}"
        if in_ci():
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def in_ci() -> bool:
    """Whether every test must run: what a machine lacks is then a failure."""
    return os.environ.get("CI") == "true"


def plain_environment() -> dict[str, str]:
    """The caller's environment without its settings of Hatrack, of OpenAI's client, and of OpenMP."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HATRACK_", "OPENAI_", "OMP_"))}
