"""Worker processes: each has its own session, so that it survives a killed trainer and is adopted by the next."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from trainer.config import run_environment
from trainer.runs.directories import RunDirectories
from trainer.runs.protocol import LOG, OLD_LOG

MAX_LOG_BYTES: Final = 16 * 2**20
CGROUP: Final = Path("/sys/fs/cgroup")
VMSTAT: Final = Path("/proc/vmstat")

Command = Callable[[Path, str], list[str]]
"""Gives the command line of a worker from the run's directory and the stage's name."""


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker exited: its exit code, or the negative number of the signal that killed it; None if unknown."""

    code: int | None


def describe_exit(end: WorkerExit) -> str:
    """How a worker exited, as a phrase that follows "the worker"."""
    if end.code is None:
        return "disappeared"
    if end.code < 0:
        return f"was killed ({signal.Signals(-end.code).name})"
    return f"ended with exit code {end.code}"


class Worker(Protocol):
    """A worker process, whichever trainer started it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> WorkerExit | None:
        """How it exited; None while it runs."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""


class Spawned:
    """A worker that is a child of this process."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid

    def poll(self) -> WorkerExit | None:
        """See Worker."""
        code = self._child.poll()
        return None if code is None else WorkerExit(code)

    def signal(self, number: signal.Signals) -> None:
        """See Worker."""
        self._child.send_signal(number)


class Adopted:
    """A worker that an earlier trainer started: it runs as long as it holds its lock.

    Args:
        pid: From `RunDirectories.worker`.
    """

    def __init__(self, directories: RunDirectories, run_id: str, pid: int) -> None:
        self._directories = directories
        self._run_id = run_id
        self.pid = pid

    def poll(self) -> WorkerExit | None:
        """See Worker."""
        pid = self._directories.worker(self._run_id)
        self.pid = pid or self.pid
        return WorkerExit(None) if pid is None else None

    def signal(self, number: signal.Signals) -> None:
        """See Worker."""
        with suppress(ProcessLookupError):
            if not self.pid:
                return
            process = os.pidfd_open(self.pid)
            try:
                # checked after the pidfd is open: while the lock is held, the pid is the worker's
                if self._directories.worker(self._run_id) == self.pid:
                    signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)


def spawn(directory: Path, argv: Sequence[str]) -> Spawned:
    """Start a process that logs to `directory`. Raises OSError."""
    log = directory / LOG
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(directory / OLD_LOG)
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            env=run_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Spawned(child)


def memory_kills() -> int:
    """How many processes the kernel has killed for lack of memory, in this control group and on this machine."""
    counts = 0
    for path in (CGROUP / "memory.events", VMSTAT):
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    counts += int(count)
    return counts
