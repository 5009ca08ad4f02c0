"""One gateway per home: a lock that is released with its process, and functions to find and stop that process."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil

from service.errors import SettingsError

LOCK = "gateway.lock"
STOP_TIMEOUT_S = 70.0
"""Longer than engine, trainer and embedder take to stop, once requests in progress have ended."""
KILL_TIMEOUT_S = 10.0


class InstanceLock:
    """Held by the gateway as long as it runs, and by a command that must be alone; the file contains its process id.

    Args:
        command: What holds it, if it is no gateway: `hatrack down` does not stop that.

    Raises:
        SettingsError: Another gateway, or such a command, holds the home.
    """

    def __init__(self, home: Path, command: str = "") -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, other = os.pread(self._descriptor, 64, 0).decode().strip().partition(" ")
            os.close(self._descriptor)
            if other:
                raise SettingsError(
                    f"`{other}` (process {pid}) is working in HATRACK_HOME={home}; wait until it has ended"
                ) from None
            raise SettingsError(
                f"another gateway (process {pid or 'unknown'}) is already running with HATRACK_HOME={home}; "
                "stop it with `hatrack down`, or set HATRACK_HOME to another directory"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {command}".strip().encode() + b"\n", 0)

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


def holder(home: Path) -> int | None:
    """The process id of the gateway that uses the home; None if there is none."""
    path = home / LOCK
    if not path.exists():
        return None
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read().strip()
            return int(text) if text.isdigit() else None
    return None


def end_gateway(home: Path, drain_s: float) -> int | None:
    """Stop the gateway that uses the home and wait for its exit: SIGTERM, then SIGKILL after STOP_TIMEOUT_S.

    Args:
        drain_s: How long requests in progress may go on before, s (HATRACK_DRAIN_S).

    Returns its process id, or None if there is none.
    """
    pid = holder(home)
    if pid is None:
        return None
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        process = psutil.Process(pid)
        for signal, timeout_s in ((SIGTERM, drain_s + STOP_TIMEOUT_S), (SIGKILL, KILL_TIMEOUT_S)):
            os.kill(pid, signal)
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline:
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    return pid
                time.sleep(0.1)
    return pid
