"""A sandbox for untrusted Python programs: `prove_sandbox` creates one, tries to escape from it, and returns it only if
every attempt fails."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from trainer.errors import SandboxUnavailable
from trainer.evaluate.sandbox.files import PythonFiles, filter_library, python_files
from trainer.runs.protocol import Frozen

PACKAGE: Final = "trainer.evaluate.sandbox"
SLACK_S: Final = 10.0
"""How long a sandbox may take to end after its time limit."""
MAX_PROGRAM_BYTES: Final = 1024 * 1024
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


class SandboxLimits(Frozen):
    """Limits of a program. ``processes``: processes and threads together, itself included. ``memory_bytes``: address
    space of each process, and resident memory of all of them together."""

    cpu_s: int = Field(10, ge=1)
    wall_s: float = Field(15, gt=0)
    memory_bytes: int = Field(512 * 2**20, ge=64 * 2**20)
    file_bytes: int = Field(1 * 2**20, ge=4096)
    tmp_bytes: int = Field(16 * 2**20, ge=65_536)
    processes: int = Field(1, ge=1)
    open_files: int = Field(32, ge=8)
    output_bytes: int = Field(64 * 2**10, ge=1024)


class SandboxResult(Frozen):
    """How a program ended: `finished` ran to its end, `failed` raised or exited early. ``result``: its `RESULT`."""

    ending: Literal["finished", "failed", "out_of_time", "out_of_memory", "killed"]
    detail: str = ""
    result: Any = None
    cpu_s: float = 0.0


class HelperStatus(Frozen):
    """The helper's final status; ``setup``: why the sandbox could not be set up, None if it was."""

    setup: str | None = None
    code: int = 0
    timed_out: bool = False
    out_of_memory: bool = False
    cpu_s: float = 0.0
    filtered: bool = False


class Sandbox:
    """Runs Python programs; created by `prove_sandbox` only. Safe for concurrent use."""

    def __init__(self, python: PythonFiles, limits: SandboxLimits, seccomp: str | None) -> None:
        self._python = python
        self._seccomp = seccomp
        self._runner = (files(PACKAGE) / "runner.py").read_text("utf-8")
        self._inner = str(files(PACKAGE) / "inner.py")
        self.limits = limits

    async def run(self, program: str, given: Any = None) -> SandboxResult:
        """Run a program, which gets ``given`` (JSON) as the global `ASKED`.

        Raises:
            SandboxUnavailable: The sandbox could not be set up; nothing was run.
        """
        token = secrets.token_hex(16)
        payload = json.dumps({"program": program, "given": given, "word": token}).encode()
        if len(payload) > MAX_PROGRAM_BYTES:
            return SandboxResult(ending="failed", detail=f"the program is larger than {MAX_PROGRAM_BYTES} bytes")
        status, output = await self._launch(payload)
        if status.setup is not None:
            raise SandboxUnavailable(f"cannot set up a sandbox on this machine: {status.setup}")
        return _result(status, output, token)

    def _plan(self) -> bytes:
        argv = [str(self._python.python), "-I", "-S", "-B", "-X", "utf8", "-c", self._runner]
        plan = {
            "argv": argv,
            "binds": self._python.binds,
            "masked": self._python.masked,
            "wall_s": self.limits.wall_s,
            "limits": self.limits.model_dump(exclude={"wall_s", "output_bytes"}),
            "seccomp": self._seccomp,
        }
        encoded = json.dumps(plan).encode()
        return len(encoded).to_bytes(8, "little") + encoded

    async def _launch(self, payload: bytes) -> tuple[HelperStatus, bytes]:
        """Start the helper and wait. Cancelling this closes the lifeline pipe, which ends the helper at once."""
        with _pipe() as (status_read, status_write), _pipe() as (lifeline_read, lifeline_write):
            process = await asyncio.create_subprocess_exec(
                *(str(self._python.python), "-I", "-S", "-B", self._inner, str(status_write), str(lifeline_read)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(status_write, lifeline_read),
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
            os.close(status_write)
            os.close(lifeline_read)
            try:
                async with asyncio.timeout(self.limits.wall_s + SLACK_S):
                    output, errors = await self._communicate(process, self._plan() + payload)
                    await process.wait()
            except TimeoutError:
                output, errors = b"", b"the helper did not end in time"
            finally:
                os.close(lifeline_write)
                await _wait_or_kill(process)
            os.set_blocking(status_read, False)  # the child of a killed helper may still hold the pipe open
            try:
                return _status(os.read(status_read, 65_536), errors), output
            except BlockingIOError:
                return _status(b"", errors), output

    async def _communicate(self, process: asyncio.subprocess.Process, payload: bytes) -> tuple[bytes, bytes]:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise SandboxUnavailable("the sandbox's helper was started without pipes")
        with suppress(ConnectionError):
            stdin.write(payload)
            await stdin.drain()
            stdin.close()
        output, errors = await asyncio.gather(
            _read_at_most(stdout, self.limits.output_bytes), _read_at_most(stderr, 4096)
        )
        return output, errors


async def _read_at_most(stream: asyncio.StreamReader, max_bytes: int) -> bytes:
    """The first ``max_bytes`` of a stream; the rest is read and discarded, so that its writer does not block."""
    content = bytearray()
    while chunk := await stream.read(65_536):
        content += chunk[: max_bytes - len(content)]
    return bytes(content)


async def _wait_or_kill(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(SLACK_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _status(content: bytes, errors: bytes) -> HelperStatus:
    """The helper's status; without one the sandbox was not set up."""
    try:
        return HelperStatus.model_validate_json(content)
    except ValidationError:
        return HelperStatus(
            setup=errors.decode("utf-8", "replace").strip()[-500:] or "the helper ended without a status"
        )


def _result(status: HelperStatus, output: bytes, token: str) -> SandboxResult:
    if status.timed_out:
        return SandboxResult(ending="out_of_time", cpu_s=status.cpu_s)
    if status.out_of_memory:
        return SandboxResult(ending="out_of_memory", detail="all processes together", cpu_s=status.cpu_s)
    if status.code != 0:
        ending: Literal["out_of_time", "killed"] = "out_of_time" if status.code in (-9, -24) else "killed"
        return SandboxResult(ending=ending, detail=f"exit code {status.code}", cpu_s=status.cpu_s)
    try:
        outcome = json.loads(output)
        if outcome.get("word") == token:
            return SandboxResult(ending="finished", result=outcome.get("result"), cpu_s=status.cpu_s)
        error = str(outcome["error"])[:100]
    except (ValueError, KeyError, AttributeError, RecursionError):
        return SandboxResult(ending="failed", detail="it exited early", cpu_s=status.cpu_s)
    return SandboxResult(
        ending="out_of_memory" if error == "MemoryError" else "failed", detail=error, cpu_s=status.cpu_s
    )


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; ends that are still open are closed on exit."""
    reading, writing = os.pipe()
    identities = [(number, os.fstat(number).st_ino) for number in (reading, writing)]
    try:
        yield reading, writing
    finally:
        for number, identity in identities:
            with suppress(OSError):
                if os.fstat(number).st_ino == identity:
                    os.close(number)


async def prove_sandbox(limits: SandboxLimits | None = None) -> Sandbox:
    """Return a sandbox that passed the self-test: none of the escape attempts succeeded.

    Raises:
        SandboxUnavailable: This machine cannot sandbox, or an attempt succeeded; the message names it.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("the sandbox needs Linux namespaces")
    sandbox = Sandbox(await asyncio.to_thread(python_files), limits or SandboxLimits(), filter_library())
    probe = (files(PACKAGE) / "probe.py").read_text("utf-8")
    with escape_targets(sandbox.limits) as targets:
        result = await sandbox.run(probe, targets)
    if result.ending != "finished" or not isinstance(result.result, dict):
        raise SandboxUnavailable(f"the sandbox's self-test did not finish ({result.ending} {result.detail})")
    escaped = sorted(name for name, got in result.result.items() if got is not False)
    if escaped:
        raise SandboxUnavailable(f"the sandbox is not safe: its self-test could escape by {', '.join(escaped)}")
    short_lived = Sandbox(sandbox._python, sandbox.limits.model_copy(update={"wall_s": 0.5}), sandbox._seccomp)
    overdue = await short_lived.run("import time\ntime.sleep(60)")
    if overdue.ending != "out_of_time":
        raise SandboxUnavailable(f"the sandbox is not safe: a program exceeded its time limit ({overdue.ending})")
    return sandbox


@contextmanager
def escape_targets(limits: SandboxLimits, scratch: Path = Path("/work")) -> Iterator[dict[str, Any]]:
    """The targets of the self-test's escape attempts: all are accessible outside of a sandbox."""
    name = f"hatrack-probe-{secrets.token_hex(8)}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        tempfile.NamedTemporaryFile("w") as secret,
    ):
        abstract.bind("\0" + name)
        abstract.listen()
        secret.write("a secret of this machine")
        secret.flush()
        Path(secret.name).chmod(0o644)
        yield {
            "port": tcp.getsockname()[1],
            "abstract": name,
            "secret": secret.name,
            "outside": ["home", "var", "proc", "sys", "tmp", "boot", "mnt", "srv", "opt"],
            "process": os.getpid(),
            "scratch": str(scratch),
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "tmp_bytes": limits.tmp_bytes,
        }
