"""Programs of the operating system that tests run. Where one is missing, the test says what to install."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "promtool": "prometheus",
    "docker-compose": "docker-compose",
    "chromium": "chromium",
    "curl": "curl",
    "systemd-analyze": "systemd",
    "libseccomp.so.2": "libseccomp2",
}
"""The Debian package of each program, and of the one library, that a test runs; `.ci/run` installs them."""
OF_CLUSTER = {"haproxy": "haproxy"}
"""The same of `make test-cluster`, which is no part of it."""


def program(name: str, *others: str) -> str:
    """The path of a program, or of the first of ``others`` that is there. Where none is, the test is skipped, and in CI
    it fails."""
    for candidate in (name, *others):
        path = shutil.which(candidate)
        if path is not None:
            return path
    missing = f"{name} is not installed: apt-get install {(PACKAGES | OF_CLUSTER)[name]}"
    if in_ci():
        pytest.fail(missing)
    pytest.skip(missing)


def in_ci() -> bool:
    """Whether every test must run: what a machine lacks is then a failure."""
    return os.environ.get("CI") == "true"


def plain_environment() -> dict[str, str]:
    """The caller's environment without its settings of Hatrack, of OpenAI's client, and of OpenMP."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HATRACK_", "OPENAI_", "OMP_"))}
