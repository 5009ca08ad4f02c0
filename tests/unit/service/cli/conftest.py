"""The `hatrack` command in this process, or at a terminal, against a gateway in a thread."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.unit.service.wire import KEY, Gateway, running

Hatrack: TypeAlias = Callable[..., Result]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running() as server:
        yield server


@pytest.fixture
def hatrack(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Hatrack:
    monkeypatch.setenv("HATRACK_URL", gateway.url)
    monkeypatch.setenv("HATRACK_KEY", KEY)

    def call(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return call


def at_terminal(gateway: Gateway, *arguments: str, typed: bytes) -> tuple[int, bytes]:
    """Run the command in a process whose stdin is a pseudo-terminal; its exit code and stdout."""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HATRACK_URL": gateway.url, "HATRACK_KEY": KEY, "TERM": "dumb"}
    command = [sys.executable, "-m", "service.cli", *arguments]
    try:
        with subprocess.Popen(command, stdin=theirs, stdout=-1, stderr=subprocess.STDOUT, env=environment) as process:
            os.write(ours, typed)
            out, _ = process.communicate(timeout=240)
    finally:
        os.close(ours)
        os.close(theirs)
    return process.returncode, out
