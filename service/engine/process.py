"""The engine's processes: started in a session of their own, found again by a mark, and ended to the last one.

vLLM is an API server with children (``EngineCore``, workers) that outlive it when it is killed and hold all the memory.
Each carries a random token, so that they are known as ours wherever they went: in its environment, or, since vLLM's
children overwrite theirs when they set a title, in that title.

Nothing ties an engine to the gateway that started it: it writes to a log file and not to a pipe, no signal of the
gateway's terminal reaches it, and it is not told when the gateway ends. So it can outlive it, by intent or by a crash.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from adapters.base import Fingerprint
from service.config import inherited_environment
from service.engine.config import KEEP_REQUEST, RECORD, EngineConfig, process_title
from service.engine.contract import SIGNATURE_VARIABLE, TOKEN_VARIABLE
from service.engine.identity import ensure_store_id
from service.engine.record import EngineRecord, Signature, read_record

TERM_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0
POLL_S = 0.05
MAX_LOG_BYTES = 16 * 1024 * 1024
MAX_ERROR_CHARS = 500
_ERROR = re.compile(
    r"^(?:\([^)\n]*\) )?(?:ERROR [^\]\n]*\] )?(?:\w+\.)*(?P<kind>\w+(?:Error|Exception|Fault)): (?P<reason>.+)$"
    r"(?:\n *Value error, (?P<detail>.+))?",
    re.MULTILINE,
)
"""The end of a traceback, with or without what vLLM's loggers put before each line."""
_LOG = logging.getLogger("hatrack.engine")


class EngineProcess:
    """A running engine, started by this process or by an earlier one.

    Args:
        token: The mark of all its processes.
        pid: Its API server.
        child: The API server, where it is a child of this process.
        log_start: Bytes that its log held before it started.

    Raises:
        ProcessLookupError, psutil.NoSuchProcess: There is no such process any more.
    """

    def __init__(self, token: str, pid: int, child: subprocess.Popen[bytes] | None = None, log_start: int = 0) -> None:
        self.token = token
        self.log_start = log_start
        self.pid = pid
        self._child = child
        self._process = psutil.Process(pid)
        self._descriptor = _open(pid)
        self._ended = select.poll()
        if self._descriptor is not None:
            self._ended.register(self._descriptor, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether the API server runs. Asked before each request, so it costs a microsecond."""
        if self._descriptor is not None:
            return not self._ended.poll(0)
        return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE

    @property
    def exit_code(self) -> int | None:
        """Exit code of the API server; None if it runs or is not a child of this process."""
        return self._child.poll() if self._child is not None else None

    def undelayed_time(self) -> UndelayedTime:
        """Start measuring how long its processes do not wait for a core. Blocks for some milliseconds."""
        return UndelayedTime([process.pid for process in members(self.token)])

    def end(self) -> None:
        """End all of its processes, and stop tracking it. Blocks until they are gone."""
        end(self.token)
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(KILL_TIMEOUT_S)
        self.release()

    def release(self) -> None:
        """Stop tracking it; it keeps running."""
        if self._descriptor is not None:
            self._ended.unregister(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


class UndelayedTime:
    """Measures the time in which processes do not wait for a core: they compute, or have nothing to compute.

    On a starved machine a sound engine gets little of it, whatever the clock on the wall says. One that hangs gets as
    much as any other: asleep, frozen or computing for ever, it waits for no core, or only for a part of the time.
    Between two readings, processes of which a thread is runnable count with the CPU time that they used.

    Args:
        pids: The processes.
    """

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._undelayed_s = self._used_s = 0.0
        self._read_at = time.monotonic()
        _, self._cpu_s = _threads(pids)

    @property
    def cores(self) -> float:
        """Cores that the processes used on average while they did not wait for one, as of the last reading."""
        return self._used_s / self._undelayed_s if self._undelayed_s else 0.0

    def read(self) -> float:
        """Seconds so far, by sampling: read it several times a second. Blocks for some milliseconds."""
        runnable, cpu_s = _threads(self._pids)
        now = time.monotonic()
        passed_s, used_s = now - self._read_at, max(cpu_s - self._cpu_s, 0.0)
        self._undelayed_s += min(used_s, passed_s) if runnable else passed_s
        self._used_s += used_s
        self._read_at, self._cpu_s = now, cpu_s
        return self._undelayed_s


def _threads(pids: list[int]) -> tuple[bool, float]:
    """Whether any thread of these processes is runnable (it runs, or waits for a core), and their CPU time, s."""
    runnable, ticks = False, 0
    for pid in pids:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    # the fields of proc(5) behind the name, which may hold anything: state first, utime and stime
                    fields = (task / "stat").read_bytes().rpartition(b") ")[2].split()
                    runnable = runnable or fields[0] == b"R"
                    ticks += int(fields[11]) + int(fields[12])
    return runnable, ticks / os.sysconf("SC_CLK_TCK")


def _open(pid: int) -> int | None:
    """A descriptor of this very process, however often its number is given away again; None where there is no such
    thing (a kernel before 5.3, some sandboxes)."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None


def spawn(config: EngineConfig, base: Fingerprint | None = None) -> EngineProcess:
    """Start vLLM. A previous engine must have been ended before.

    Args:
        config: Its flags and directories.
        base: The identity of the base model; without it the engine cannot be adopted later.

    Raises:
        OSError: It cannot be started.
    """
    config.directory.mkdir(parents=True, exist_ok=True)
    config.directory.chmod(0o700)  # whoever reaches the socket reaches the engine, without a key
    ensure_store_id(config.store)
    config.write_template()
    config.socket.unlink(missing_ok=True)
    _rotate(config.log)
    token = secrets.token_hex(16)
    inherited = inherited_environment()
    environment = config.environment(token, inherited, base=base)
    signature = None if base is None else Signature.of(config, base, inherited)
    if signature is not None:
        environment[SIGNATURE_VARIABLE] = signature.digest
    # written before the start, so that nothing can be running that is on no record
    EngineRecord(token, None, signature).write(config.record)
    with config.log.open("ab") as log:
        log_start = log.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            config.argv(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which ends the engine or keeps it
        )
    try:
        EngineRecord(token, child.pid, signature).write(config.record)
        return EngineProcess(token, child.pid, child, log_start)
    except BaseException:
        end(token)  # nobody would know of it
        raise


def first_error(log: Path, start: int) -> str | None:
    """The first error that the engine's log names from `start` bytes on: what the later ones follow from.

    None if there is none, or if the log cannot be read.
    """
    try:
        with log.open("rb") as file:
            file.seek(start)
            text = file.read(MAX_LOG_BYTES).decode(errors="replace")
    except OSError:
        return None
    match = _ERROR.search(text)
    return (
        None if match is None else f"{match['kind']}: {(match['detail'] or match['reason']).strip()[:MAX_ERROR_CHARS]}"
    )


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def end(token: str, *, graceful: bool = True) -> list[int]:
    """End every process that carries the token; returns their process ids.

    Blocks until they are gone: SIGTERM first (if ``graceful``), SIGKILL for what remains after ten seconds.
    """
    remaining = members(token)
    pids = {process.pid for process in remaining}
    if graceful and remaining:
        _signal(remaining, signal.SIGTERM)
        _signal(remaining, signal.SIGCONT)  # a frozen one hears nothing
        remaining = _wait(token, TERM_TIMEOUT_S)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while remaining and time.monotonic() < deadline:
        _signal(remaining, signal.SIGKILL)
        remaining = _wait(token, 1.0)
    if remaining:
        _LOG.error("engine processes could not be killed", extra={"pids": [p.pid for p in remaining]})
    return sorted(pids)


def members(token: str) -> list[psutil.Process]:
    """The running processes whose environment or title carries the token."""
    variable, title = f"{TOKEN_VARIABLE}={token}".encode(), process_title(token).encode()
    matching = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError, psutil.Error):
            marked = variable in (entry / "environ").read_bytes().split(b"\0")
            if marked or (entry / "cmdline").read_bytes().startswith(title):
                process = psutil.Process(int(entry.name))
                if process.status() != psutil.STATUS_ZOMBIE:
                    matching.append(process)
    return matching


def end_leftovers(directory: Path) -> list[int]:
    """End the engine on record in ``directory``, whoever started it; returns its process ids."""
    path = directory / RECORD
    record = read_record(path)
    if record is None:
        return []
    ended = end(record.token)
    if not members(record.token):
        path.unlink(missing_ok=True)
    return ended


def is_running(directory: Path) -> bool:
    """Whether a process of the engine on record in ``directory`` lives, whoever started it."""
    record = read_record(directory / RECORD)
    return record is not None and bool(members(record.token))


def ask_to_keep(directory: Path) -> None:
    """Ask the gateway that uses ``directory`` to leave its engine running when it stops this time."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / KEEP_REQUEST).touch()


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _wait(token: str, timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while (left := members(token)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left
