"""A real S3 server for the tests, moto's, as a process: one a session. And a door before it that can be shut."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

START_S: Final = 60.0
REGION: Final = "us-east-1"


def program() -> Path | None:
    """moto's server; None where it is not installed."""
    beside = Path(sys.executable).parent / "moto_server"
    found = str(beside) if beside.exists() else shutil.which("moto_server")
    return None if found is None else Path(found)


def require_server() -> Path:
    """moto's server; skip, or fail in CI, where it is not installed."""
    found = program()
    if found is None:
        why = "no S3 server is installed: pip install 'moto[s3]>=5.2,<6' 'flask>=3.1,<4' 'flask-cors>=6,<7'"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found


class Door:
    """Forwards connections to a port while it is open; shut, it cuts them and refuses new ones; stalled, it takes
    them, and nothing comes through."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._flows = threading.Event()
        self._flows.set()
        self.port = 0
        self.open()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Let connections in, at the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stall(self) -> None:
        """Let nothing through until `flow`."""
        self._flows.clear()

    def flow(self) -> None:
        """Let everything through again."""
        self._flows.set()

    def shut(self) -> None:
        """Cut what is open, and refuse what comes."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        for each in list(self._pairs):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            pair = {client: server, server: client}
            self._pairs |= pair.keys()
            try:
                while True:
                    for ready in select.select(list(pair), [], [])[0]:
                        data = ready.recv(1 << 16)
                        self._flows.wait()
                        if not data:
                            return
                        pair[ready].sendall(data)
            finally:
                self._pairs -= pair.keys()


@dataclass
class S3Server:
    """The server that runs; every test takes a bucket of its own."""

    port: int
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> str:
        """A new bucket; returns its name."""
        name = f"bucket-{next(self._numbers)}"
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")).close()
        return name

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What tells obstore of it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": REGION,
        }


@contextmanager
def running_server(log: Path) -> Iterator[S3Server]:
    """Run the server on a free port."""
    command = [str(require_server()), "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield S3Server(_port(process, log))
    finally:
        process.terminate()
        process.wait(START_S)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            _, found, port = line.partition("Running on http://127.0.0.1:")
            if found:
                return int(port.split()[0])
        time.sleep(0.05)
    raise RuntimeError(log.read_text())
