"""`hatrack agent` over a stub of an engine, which ends with it: the options are the command's.

python -m tests.support.stubbed_agent --host 127.0.0.1 --port 0
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from service.cli.main import app
from service.cluster.replica import BOUND_TO_PARENT

START_S = 300.0


def main() -> None:
    """Start the stub, and become the agent."""
    if "HATRACK_STORE_URL" in os.environ:
        # somebody else's engine reads adapters in the home, which is no two agents' cache of an object store
        Path(os.environ["HATRACK_HOME"]).mkdir(exist_ok=True)
        os.environ["HATRACK_HOME"] = tempfile.mkdtemp(dir=os.environ["HATRACK_HOME"])
    socket = Path(tempfile.mkdtemp(prefix="stub-")) / "engine.sock"
    stub = (sys.executable, "-m", "tests.support.stub_engine", str(socket))
    engine = subprocess.Popen([sys.executable, "-c", BOUND_TO_PARENT, str(os.getpid()), *stub])
    deadline = time.monotonic() + START_S
    while not socket.exists():
        assert engine.poll() is None, "the stub has ended"
        assert time.monotonic() < deadline, "the stub does not listen"
        time.sleep(0.05)
    os.environ["HATRACK_ENGINE_URL"] = f"unix:{socket}"
    app(["agent", *sys.argv[1:]])


if __name__ == "__main__":
    main()
