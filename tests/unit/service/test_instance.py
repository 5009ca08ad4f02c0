"""The end of a gateway that another process asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.errors import SettingsError
from service.server import instance

HOLDER = """
import signal, sys, time
from pathlib import Path
from service.server.instance import InstanceLock

signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else lambda *_: sys.exit(0))
lock = InstanceLock(Path(sys.argv[1]))
print("holds", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["polite", "deaf"])
def test_it_has_ended_when_this_returns(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "STOP_TIMEOUT_S", 60.0 if kind == "polite" else 0.3)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), kind], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"holds\n"
            assert instance.end_gateway(tmp_path, 0) == process.pid
            assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE  # not buried by us yet
            assert process.wait(60) == (0 if kind == "polite" else -9)
        finally:
            process.kill()
    assert instance.holder(tmp_path) is None
    instance.InstanceLock(tmp_path).release()


def test_where_nobody_holds_the_home_nothing_is_ended(tmp_path: Path) -> None:
    assert instance.end_gateway(tmp_path, 0) is None


def test_a_command_that_must_be_alone_is_named_and_is_not_taken_for_a_gateway(tmp_path: Path) -> None:
    lock = instance.InstanceLock(tmp_path, "hatrack restore")
    try:
        assert instance.holder(tmp_path) is None
        with pytest.raises(SettingsError, match=rf"`hatrack restore` \(process {os.getpid()}\) is working"):
            instance.InstanceLock(tmp_path)
    finally:
        lock.release()
    gateway = instance.InstanceLock(tmp_path)
    assert instance.holder(tmp_path) == os.getpid()
    gateway.release()
