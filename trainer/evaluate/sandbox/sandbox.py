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
from trainer.evaluate.arms import Frozen
from trainer.evaluate.sandbox.files import PythonFiles, filter_library, python_files

PACKAGE: Final = "trainer.evaluate.sandbox"
SLACK_S: Final = 10.0
"""How long after its time a sandbox may take to be gone."""
MAX_PROGRAM_BYTES: Final = 1024 * 1024
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


class SandboxLimits(Frozen):
    """What a program may take. ``processes`` and threads together, itself included; ``memory_bytes`` of each of them by
    address space, and of all of them by what is resident."""

    cpu_s: int = Field(10, ge=1)
    wall_s: float = Field(15, gt=0)
    memory_bytes: int = Field(512 * 2**20, ge=64 * 2**20)
    file_bytes: int = Field(1 * 2**20, ge=4096)
    tmp_bytes: int = Field(16 * 2**20, ge=65_536)
    processes: int = Field(1, ge=1)
    open_files: int = Field(32, ge=8)
    output_bytes: int = Field(64 * 2**10, ge=1024)


class SandboxResult(Frozen):
    """How a program ended: `finished` came to its end, `failed` raised or left early; `result` is its `RESULT`."""

    ending: Literal["finished", "failed", "out_of_time", "out_of_memory", "killed"]
    detail: str = ""
    result: Any = None
    cpu_s: float = 0.0


class HelperStatus(Frozen):
    """What the helper says at the end; ``setup`` is why there were no walls, None where there were."""

    setup: str | None = None
    code: int = 0
    timed_out: bool = False
    out_of_memory: bool = False
    cpu_s: float = 0.0
    filtered: bool = False


class Sandbox:
    """Runs Python programs; only `prove_sandbox` makes one. Safe to use for several programs at once."""

    def __init__(self, shown: PythonFiles, limits: SandboxLimits, seccomp: str | None) -> None:
        self._shown = shown
        self._seccomp = seccomp
        self._runner = (files(PACKAGE) / "runner.py").read_text("utf-8")
        self._inner = str(files(PACKAGE) / "inner.py")
        self.limits = limits

    async def run(self, program: str, given: Any = None) -> SandboxResult:
        """Run a program, which finds `given` (JSON) as `ASKED`.

        Raises:
            SandboxUnavailable: The walls could not be made; nothing was run.
        """
        word = secrets.token_hex(16)
        asked = json.dumps({"program": program, "given": given, "word": word}).encode()
        if len(asked) > MAX_PROGRAM_BYTES:
            return SandboxResult(ending="failed", detail=f"the program has more than {MAX_PROGRAM_BYTES} bytes")
        status, output = await self._launch(asked)
        if status.setup is not None:
            raise SandboxUnavailable(f"no sandbox can be made here: {status.setup}")
        return _result(status, output, word)

    def _plan(self) -> bytes:
        argv = [str(self._shown.python), "-I", "-S", "-B", "-X", "utf8", "-c", self._runner]
        plan = {
            "argv": argv,
            "binds": self._shown.binds,
            "masked": self._shown.masked,
            "wall_s": self.limits.wall_s,
            "limits": self.limits.model_dump(exclude={"wall_s", "output_bytes"}),
            "seccomp": self._seccomp,
        }
        found = json.dumps(plan).encode()
        return len(found).to_bytes(8, "little") + found

    async def _launch(self, asked: bytes) -> tuple[HelperStatus, bytes]:
        """Start the helper, which ends by itself; where this is cancelled its lifeline is cut, and it ends at once."""
        with _pipe() as (status_read, status_write), _pipe() as (lifeline_read, lifeline_write):
            process = await asyncio.create_subprocess_exec(
                *(str(self._shown.python), "-I", "-S", "-B", self._inner, str(status_write), str(lifeline_read)),
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
                    output, said = await self._talk(process, self._plan() + asked)
                    await process.wait()
            except TimeoutError:
                output, said = b"", b"it did not end in time"
            finally:
                os.close(lifeline_write)
                await _wait_or_kill(process)
            os.set_blocking(status_read, False)  # a helper that had to be killed has a child that may still hold it
            try:
                return _status(os.read(status_read, 65_536), said), output
            except BlockingIOError:
                return _status(b"", said), output

    async def _talk(self, process: asyncio.subprocess.Process, given: bytes) -> tuple[bytes, bytes]:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise SandboxUnavailable("the sandbox's helper has no pipes")
        with suppress(ConnectionError):
            stdin.write(given)
            await stdin.drain()
            stdin.close()
        output, said = await asyncio.gather(_at_most(stdout, self.limits.output_bytes), _at_most(stderr, 4096))
        return output, said


async def _at_most(stream: asyncio.StreamReader, most: int) -> bytes:
    """The first bytes of a stream; the rest is read and dropped, so that its writer is not held up."""
    found = bytearray()
    while piece := await stream.read(65_536):
        found += piece[: most - len(found)]
    return bytes(found)


async def _wait_or_kill(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(SLACK_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _status(content: bytes, said: bytes) -> HelperStatus:
    """What the helper said; where it said nothing there were no walls."""
    try:
        return HelperStatus.model_validate_json(content)
    except ValidationError:
        return HelperStatus(setup=said.decode("utf-8", "replace").strip()[-500:] or "its helper ended without a word")


def _result(status: HelperStatus, output: bytes, word: str) -> SandboxResult:
    if status.timed_out:
        return SandboxResult(ending="out_of_time", cpu_s=status.cpu_s)
    if status.out_of_memory:
        return SandboxResult(ending="out_of_memory", detail="its processes together", cpu_s=status.cpu_s)
    if status.code != 0:
        ending: Literal["out_of_time", "killed"] = "out_of_time" if status.code in (-9, -24) else "killed"
        return SandboxResult(ending=ending, detail=f"exit code {status.code}", cpu_s=status.cpu_s)
    try:
        found = json.loads(output)
        if found.get("word") == word:
            return SandboxResult(ending="finished", result=found.get("result"), cpu_s=status.cpu_s)
        error = str(found["error"])[:100]
    except (ValueError, KeyError, AttributeError, RecursionError):
        return SandboxResult(ending="failed", detail="it left before its end", cpu_s=status.cpu_s)
    return SandboxResult(
        ending="out_of_memory" if error == "MemoryError" else "failed", detail=error, cpu_s=status.cpu_s
    )


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; whichever is still open at the end is closed."""
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
    """A sandbox out of which nothing got that the self-test tried.

    Raises:
        SandboxUnavailable: There are no walls on this machine, or an attempt got through; the message says which.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("a sandbox needs Linux's namespaces")
    sandbox = Sandbox(await asyncio.to_thread(python_files), limits or SandboxLimits(), filter_library())
    probe = (files(PACKAGE) / "probe.py").read_text("utf-8")
    with escape_targets(sandbox.limits) as given:
        found = await sandbox.run(probe, given)
    if found.ending != "finished" or not isinstance(found.result, dict):
        raise SandboxUnavailable(f"the sandbox's self-test did not come to its end ({found.ending} {found.detail})")
    through = sorted(name for name, got in found.result.items() if got is not False)
    if through:
        raise SandboxUnavailable(f"the sandbox does not hold: {', '.join(through)} got through")
    short = Sandbox(sandbox._shown, sandbox.limits.model_copy(update={"wall_s": 0.5}), sandbox._seccomp)
    late = await short.run("import time\ntime.sleep(60)")
    if late.ending != "out_of_time":
        raise SandboxUnavailable(f"the sandbox does not hold: a program outlived its time ({late.ending})")
    return sandbox


@contextmanager
def escape_targets(limits: SandboxLimits, scratch: Path = Path("/work")) -> Iterator[dict[str, Any]]:
    """What the probe is to reach for: all of it is there and open to whoever is not in a sandbox."""
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
