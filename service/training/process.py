"""Supervises the trainer's process: starts it with the gateway, restarts it when it exits, stops it with the gateway.

Three things tie it to the gateway. Its standard input is a pipe from the gateway: end of file means that the gateway
is gone, however it ended, and the trainer stops. It inherits a lock that is held as long as it lives, which identifies
a leftover process. And it is a child process, so that its exit is seen.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from service.config import inherited_environment
from service.training.config import TrainerConfig

BACK_OFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_S: Final = 60.0
"""A trainer that has run this long resets the back-off."""
TICK_S: Final = 0.25
STOP_TIMEOUT_S: Final = 20.0
"""Grace period before SIGKILL, s: time for its workers to finish a step and write a checkpoint."""
KILL_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.05
MAX_LOG_BYTES: Final = 16 * 1024 * 1024
_LOG = logging.getLogger("hatrack.training")


class TrainerProcess:
    """Keeps one trainer running as long as the gateway runs.

    Args:
        config: Its command line and paths.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self.starts = 0
        """Number of starts so far."""

    @property
    def pid(self) -> int | None:
        """Process id of the running trainer; None if none runs."""
        return None if self._child is None or self._child.poll() is not None else self._child.pid

    async def start(self) -> None:
        """End a leftover process, if any, and start supervising. Returns before the trainer answers."""
        self._task = asyncio.create_task(self._run(), name="trainer-process")

    async def stop(self) -> None:
        """Stop the trainer: SIGTERM, then SIGKILL after STOP_TIMEOUT_S. Returns when it is gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(_end_child, child)

    async def _run(self) -> None:
        leftover = await asyncio.to_thread(end_leftover, self._config.lock)
        if leftover is not None:
            _LOG.warning("ended a trainer left over from a previous gateway", extra={"pid": leftover})
        failures = 0
        while True:
            began = time.monotonic()
            try:
                # not in a thread: a start that outlived its cancellation would leave an unsupervised trainer
                self._child = spawn(self._config)
                self.starts += 1
                code = await _wait(self._child)
                _close_input(self._child)
                reason = f"exited with code {code}; see {self._config.log.name}"
            except OSError as error:
                reason = f"cannot be started: {error}"
            failures = 1 if time.monotonic() - began > STABLE_S else failures + 1
            pause_s = BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1]
            _LOG.error("restarting the trainer", extra={"reason": reason, "in_s": pause_s})
            await asyncio.sleep(pause_s)


async def _wait(child: subprocess.Popen[bytes]) -> int:
    while True:
        code = child.poll()
        if code is not None:
            return code
        await asyncio.sleep(TICK_S)


def spawn(config: TrainerConfig) -> subprocess.Popen[bytes]:
    """Start a trainer. A leftover process must have been ended before.

    Raises:
        OSError: It cannot be started; BlockingIOError if a trainer started by a gateway still runs.
    """
    config.directory.mkdir(parents=True, exist_ok=True)
    config.directory.chmod(0o700)  # whoever can open the socket can act in every project
    if config.log.exists() and config.log.stat().st_size > MAX_LOG_BYTES:
        config.log.replace(config.log.with_suffix(".log.1"))
    lock = os.open(config.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)  # before the start: a held lock must never contain another process's id
        with config.log.open("ab") as log:
            child = subprocess.Popen(
                config.argv(),
                env=config.environment(inherited_environment()),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C goes to the gateway, which stops the trainer
                pass_fds=(lock,),  # the child holds the lock until it exits
            )
        os.pwrite(lock, f"{child.pid}\n".encode(), 0)
        return child
    finally:
        os.close(lock)


def _close_input(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()


def _end_child(child: subprocess.Popen[bytes]) -> None:
    _close_input(child)
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _LOG.warning("the trainer did not stop in time; killing it", extra={"pid": child.pid})
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(KILL_TIMEOUT_S)


def end_leftover(lock: Path) -> int | None:
    """End a trainer that outlived the gateway that started it. Returns its process id, or None if there is none.

    Blocks until it is gone: SIGTERM, then SIGKILL after STOP_TIMEOUT_S.
    """
    pid = holder(lock)
    if pid is None:
        return None
    for number, timeout_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
        with suppress(psutil.Error):
            psutil.Process(pid).send_signal(number)
        deadline = time.monotonic() + timeout_s
        while (held_by := holder(lock)) is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if held_by is None:
            return pid
    _LOG.error("a trainer left over from a previous gateway could not be ended", extra={"pid": pid})
    return pid


def holder(lock: Path) -> int | None:
    """The process id of the trainer that holds the lock; None if nobody does.

    Only a trainer started by a gateway can hold the lock: no other process opens it, and the id in the file is that
    trainer's as long as the lock is held.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None
