"""The server that tests use ends with them, however they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.postgresql import require_server
from tests.support.waiting import wait_until

PROGRAM = """
import time
from tests.support.postgresql import running_server
with running_server() as server:
    print(server.folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_and_leaves_nothing_when_the_tests_are_killed(how: signal.Signals) -> None:
    require_server()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        folder = Path(tests.stdout.readline().strip())
        server = psutil.Process(int((folder / "data" / "postmaster.pid").read_text().split()[0]))
        tests.send_signal(how)
    wait_until(lambda: not server.is_running(), "the server runs on", timeout_s=60)
    wait_until(lambda: not folder.exists(), "its folder is left", timeout_s=60)
