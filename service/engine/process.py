"""The engine's processes: started in a group of their own, found again by a mark, and ended to the last one.

vLLM is an API server with children (``EngineCore``, workers) that outlive it when it is killed and hold all the memory.
Each carries a random token, so that they are known as ours wherever they went: in its environment, or, since vLLM's
children overwrite theirs when they set a title, in that title.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from service.access.keys import write_secret
from service.engine.config import EngineConfig, process_title
from service.engine.contract import TOKEN_VARIABLE

TERM_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0
POLL_S = 0.05
MAX_LOG_BYTES = 16 * 1024 * 1024
_LOG = logging.getLogger("hatrack.engine")


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A started engine."""

    process: subprocess.Popen[bytes]
    token: str

    @property
    def exit_code(self) -> int | None:
        """None while the API server lives."""
        return self.process.poll()


def spawn(config: EngineConfig) -> EngineProcess:
    """Start vLLM. What a former one left must have been ended before.

    Raises:
        OSError: It cannot be started.
    """
    config.directory.mkdir(parents=True, exist_ok=True)
    config.directory.chmod(0o700)  # whoever reaches the socket reaches the engine, without a key
    config.store.mkdir(parents=True, exist_ok=True)
    config.socket.unlink(missing_ok=True)
    _rotate(config.log)
    token = secrets.token_hex(16)
    # written before the start, so that nothing can be running that is on no record
    write_secret(config.record, orjson.dumps({"token": token, "argv": config.argv()}).decode())
    with config.log.open("ab") as log:
        process = subprocess.Popen(
            config.argv(),
            env=config.environment(token, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which then ends the engine in order
        )
    return EngineProcess(process, token)


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def end(token: str, *, politely: bool = True) -> list[int]:
    """End every process that carries the token; returns the process ids that there were.

    Blocks until they are gone: SIGTERM first (if ``politely``), SIGKILL for what remains after ten seconds.
    """
    found = members(token)
    first = {process.pid for process in found}
    if politely and found:
        _signal(found, signal.SIGTERM)
        found = _wait(token, TERM_TIMEOUT_S)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while found and time.monotonic() < deadline:
        _signal(found, signal.SIGKILL)
        found = _wait(token, 1.0)
    if found:
        _LOG.error("processes of the engine could not be ended", extra={"pids": [p.pid for p in found]})
    return sorted(first)


def members(token: str) -> list[psutil.Process]:
    """The living processes whose environment or title carries the token."""
    variable, title = f"{TOKEN_VARIABLE}={token}".encode(), process_title(token).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError, psutil.Error):
            marked = variable in (entry / "environ").read_bytes().split(b"\0")
            if marked or (entry / "cmdline").read_bytes().startswith(title):
                process = psutil.Process(int(entry.name))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def end_leftovers(directory: Path) -> list[int]:
    """End what a crash left of the engine that is on record in ``directory``; returns the process ids."""
    record = directory / "engine.json"
    try:
        token = str(orjson.loads(record.read_bytes())["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    ended = end(token)
    if not members(token):
        record.unlink(missing_ok=True)
    return ended


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _wait(token: str, timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while (left := members(token)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left
