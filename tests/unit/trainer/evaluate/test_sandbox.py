"""The sandbox, with programs that want out. Where this machine can make none, that it then runs nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.support.system import PACKAGES, in_ci
from trainer.errors import SandboxUnavailable
from trainer.evaluate.sandbox import sandbox as module
from trainer.evaluate.sandbox.files import PythonFiles, python_files
from trainer.evaluate.sandbox.sandbox import PACKAGE, Sandbox, SandboxLimits, escape_targets, prove_sandbox

SHORT = SandboxLimits(cpu_s=1, wall_s=2)
PATIENT = SandboxLimits(cpu_s=60, wall_s=120)
"""For what ends by itself: Python's start alone may take long on a busy machine."""
PROBE = (Path(module.__file__).parent / "probe.py").read_text()

HOSTILE = {
    "leaves early": ("import os\nos._exit(0)", "failed"),
    "exits politely": ("import sys\nsys.exit(0)", "failed"),
    "raises": ("raise ValueError", "failed"),
    "does not compile": ("def (", "failed"),
    "turns": ("while True: pass", "out_of_time"),
    "sleeps": ("import time\ntime.sleep(60)", "out_of_time"),
    "ignores signals": (
        "import signal, time\n"
        "for n in (15, 2, 1, 24): signal.signal(n, signal.SIG_IGN)\n"
        "while True:\n try: time.sleep(60)\n except BaseException: pass",
        "out_of_time",
    ),
    "would outlive its parent": (
        "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0)\ntime.sleep(60)",
        "out_of_time",
    ),
    "wants memory": ("x = bytearray(10**9)", "out_of_memory"),
    "wants memory in pieces": ("x = []\nwhile True: x.append(bytes(10**6))", "out_of_memory"),
    "forks": ("import os\nwhile True: os.fork()", "failed"),
    "kills everybody": ("import os\nos.kill(-1, 9)", "failed"),
    "reads a null pointer": ("import ctypes\nctypes.string_at(0)", "killed"),
    "aborts": ("import os\nos.abort()", "killed"),
    "goes out": ("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)", "failed"),
    "looks around": ("open('/etc/passwd').read()", "failed"),
    "imports a library": ("import numpy", "failed"),
    "fakes an answer": (
        "import os\n"
        "for n in range(3, 32):\n"
        ' try: os.write(n, b\'{"word": "passed"}\')\n'
        " except OSError: pass\n"
        "os._exit(0)",
        "failed",
    ),
}

CALLS = """
import ctypes, fcntl, os
LIBC = ctypes.CDLL(None, use_errno=True)
def checked(found):
    if found == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return found
"""
UNCOUNTED = {
    "System V shared memory": (
        "LIBC.shmat.restype = ctypes.c_void_p\n"
        "for n in range(9):\n"
        " segment = checked(LIBC.shmget(0, ctypes.c_size_t(64 << 20), 0o1600))\n"
        " at = LIBC.shmat(segment, None, 0)\n"
        " ctypes.memset(at, 1, 64 << 20)\n"
        " LIBC.shmdt(ctypes.c_void_p(at))"
    ),
    "System V messages": (
        "message = bytes(8 + 8000)\n"
        "for n in range(31000):\n"
        " queue = checked(LIBC.msgget(0, 0o1600))\n"
        " for _ in range(2): checked(LIBC.msgsnd(queue, b'\\1' + message[1:], 8000, 0o4000))"
    ),
    "System V semaphores": "for n in range(270): checked(LIBC.semget(0, 32000, 0o1600))",
    "files in memory": (
        "kept = [os.memfd_create('x') for n in range(20)]\nfor file in kept: os.write(file, bytes(1 << 20))"
    ),
    "locks of ranges": (
        "with open('locked', 'wb') as file:\n"
        " for at in range(0, 4000, 2): fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)"
    ),
    "events of directories": (
        "watching = checked(LIBC.inotify_init1(0))\n"
        "checked(LIBC.inotify_add_watch(watching, b'/work', 0xfff))\n"
        "for n in range(1000): open(f'{n % 2}' * 200, 'w').close()"
    ),
}
"""Memory that no limit of a process counts, or the kernel's own; the first three hold more than 512 MiB."""
BOUNDED = """
import fcntl, os, socket
kept, pipes = 0, []
try:
    while True:
        pipes.append(os.pipe())
        fcntl.fcntl(pipes[-1][1], 1031, 1 << 20)
        os.set_blocking(pipes[-1][1], False)
        kept += os.write(pipes[-1][1], bytes(1 << 20))
except OSError:
    for pair in pipes:
        os.close(pair[0]), os.close(pair[1])
sockets = []
try:
    while True:
        sockets += socket.socketpair()
        for end in sockets[-2:]:
            try: end.setsockopt(1, 7, 1 << 30)
            except PermissionError: pass
            end.setblocking(False)
            try:
                while True: kept += end.send(bytes(4096))
            except BlockingIOError: pass
except OSError:
    for end in sockets: end.close()
try:
    n = 0
    while True:
        n += 1
        with open(f'piece-{n}', 'wb', buffering=0) as file: kept += file.write(bytes(1 << 19))
except OSError: pass
RESULT = kept
"""


@pytest.fixture(scope="module", autouse=True)
def _slack() -> Iterator[None]:
    """A sandbox that is slow to be made or to be gone, as on a busy machine, does not count as none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLACK_S", 120.0)
        patch.setattr("trainer.evaluate.sandbox.files.TIMEOUT_S", 240)
        yield


@pytest.fixture(scope="module")
async def made() -> Sandbox | None:
    """A sandbox that holds; None where this machine gives none, which in CI is a failure."""
    try:
        return await prove_sandbox(PATIENT)
    except SandboxUnavailable as error:
        if in_ci():
            pytest.fail(f"{error.message} (libseccomp: apt-get install {PACKAGES['libseccomp.so.2']})")
        return None


def within(made: Sandbox, limits: SandboxLimits) -> Sandbox:
    return Sandbox(made._python, limits, made._seccomp)


async def refused() -> None:
    """Nothing runs where there are no walls. A machine may also give walls that do not hold, as without libseccomp:
    then nobody is given a sandbox."""
    try:
        await Sandbox(python_files(), SHORT, None).run("pass")
    except SandboxUnavailable:
        return
    with pytest.raises(SandboxUnavailable, match="is not safe"):
        await prove_sandbox(PATIENT)


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_program_gets_nowhere(made: Sandbox | None, name: str) -> None:
    if made is None:
        await refused()
        return
    program, ending = HOSTILE[name]
    limits = SHORT if ending == "out_of_time" else PATIENT
    ran = await within(made, limits).run(program)
    assert (ran.ending, ran.result) == (ending, None), ran


@pytest.mark.parametrize("way", UNCOUNTED)
async def test_no_memory_is_had_past_the_limit(made: Sandbox | None, way: str) -> None:
    if made is None:
        await refused()
        return
    ran = await within(made, PATIENT).run(CALLS + UNCOUNTED[way])
    assert (ran.ending, ran.detail) == ("failed", "PermissionError")


async def test_what_pipes_sockets_and_files_hold_is_bounded(made: Sandbox | None) -> None:
    if made is None:
        await refused()
        return
    ran = await within(made, PATIENT).run(BOUNDED)
    assert ran.ending == "finished", ran
    assert 16 << 20 < ran.result < 64 << 20, "its files, and at most as much again in pipes and sockets"


async def test_processes_share_the_limit_of_memory(made: Sandbox | None) -> None:
    if made is None:
        await refused()
        return
    limits = SandboxLimits(cpu_s=60, wall_s=120, memory_bytes=96 << 20, processes=4)
    program = (
        "import os, signal\n"
        "for n in range({}):\n"
        " if os.fork() == 0:\n"
        "  x = bytearray(48 << 20)\n"
        "  x[::4096] = b'1' * 12288\n"
        "  signal.pause() if {} else os._exit(0)\n"
        "if {}: signal.pause()\n"
        "os.wait()"
    )
    alone = await within(made, limits).run(program.format(1, False, False))
    assert alone.ending == "finished", alone
    ran = await within(made, limits).run(program.format(3, True, True))
    assert (ran.ending, ran.detail) == ("out_of_memory", "all processes together")


async def test_an_event_loop_runs(made: Sandbox | None) -> None:
    """It needs a pair of sockets."""
    if made is None:
        await refused()
        return
    program = "import asyncio\nRESULT = asyncio.run(asyncio.sleep(0, 3))"
    assert (await within(made, PATIENT).run(program)).result == 3


async def test_it_holds_under_the_umask_of_the_trainer(made: Sandbox | None) -> None:
    if made is None:
        await refused()
        return
    os.umask(0o077)  # what `trainer.__main__` sets
    await prove_sandbox(PATIENT)


async def test_an_honest_program_comes_to_its_end_with_its_result(made: Sandbox | None) -> None:
    if made is None:
        await refused()
        return
    ran = await within(made, PATIENT).run(
        "import collections, hashlib, math, re, typing\n"
        "open('note', 'w').write('x' * 1000)\n"
        "RESULT = [math.comb(ASKED['n'], 2), len(open('note').read())]",
        {"n": 5},
    )
    assert (ran.ending, ran.result) == ("finished", [10, 1000])


async def test_programs_do_not_see_files_of_earlier_ones(made: Sandbox | None) -> None:
    if made is None:
        await refused()
        return
    await made.run("open('note', 'w').write('left')")
    assert (await made.run("import os\nRESULT = os.listdir('/work')")).result == []


async def test_a_cancelled_program_leaves_no_process(made: Sandbox | None) -> None:
    if made is None:
        await refused()
        return
    before = set(psutil.Process().children(recursive=True))
    patient = within(made, SandboxLimits(wall_s=600))  # so that it is not its time that ends it
    task = asyncio.create_task(patient.run("import ctypes, time\nctypes.CDLL(None).prctl(1, 0)\ntime.sleep(600)"))
    children: list[psutil.Process] = []
    while len(children) < 3:  # both helpers and the program
        assert not task.done(), task
        await asyncio.sleep(0.02)
        children = [child for child in psutil.Process().children(recursive=True) if child not in before]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 60)
    assert alive == []


async def test_long_output_is_truncated(made: Sandbox | None) -> None:
    if made is None:
        await refused()
        return
    ran = await made.run("RESULT = 'x' * 10**6")
    assert (ran.ending, ran.detail) == ("failed", "it exited early")


def test_outside_of_a_sandbox_the_probe_gets_through(tmp_path: Path) -> None:
    """A self-test that could not see a hole would prove nothing."""
    limits = SandboxLimits(memory_bytes=64 * 2**20, file_bytes=4096, tmp_bytes=65_536)
    with escape_targets(limits, tmp_path) as given:
        space: dict[str, Any] = {"__name__": "probe", "ASKED": {**given, "outside": set(given["outside"])}}
        exec(compile(PROBE, "probe.py", "exec"), space)  # noqa: S102
        # those that would change this process, or need a machine of a kind, are left out
        changing = {"large_file", "interfaces", "become_root", "capabilities", "new_namespace", "mount", "raise_limits"}
        changing |= {"hypervisor", "write_outside", "write_python", "environment"}
        # a container may have taken from this process, too, what the sandbox takes
        if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
            changing.add("privileges")
        if os.statvfs(tmp_path).f_flag & os.ST_NOEXEC:
            changing.add("execute_file")
        found = {
            attempt.__name__: space["got_through"](attempt)
            for attempt in space["ATTEMPTS"]
            if attempt.__name__ not in changing
        }
    assert all(found.values()), found


@pytest.mark.parametrize("through", ["tcp", "secret_file"])
async def test_a_sandbox_with_a_hole_is_refused(
    made: Sandbox | None, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe's attempts are really weighed: one that gets through is named, and there is no sandbox."""
    if made is None:
        await refused()
        return
    holed = PROBE.replace(f"def {through}() -> bool:\n", f"def {through}() -> bool:\n    return True\n")
    assert holed != PROBE
    real = Sandbox.run

    async def run(self: Sandbox, program: str, given: Any = None) -> Any:
        return await real(self, holed if program == PROBE else program, given)

    monkeypatch.setattr(Sandbox, "run", run)
    with pytest.raises(SandboxUnavailable, match=f"is not safe: its self-test could escape by {through}"):
        await prove_sandbox(PATIENT)


async def test_a_failed_sandbox_setup_is_an_error_and_nothing_is_run(tmp_path: Path) -> None:
    shown = python_files()
    missing = str(tmp_path / "missing")
    broken = PythonFiles(shown.python, (*shown.binds, (missing, missing)), shown.masked)
    with pytest.raises(SandboxUnavailable, match="cannot set up a sandbox on this machine"):
        await Sandbox(broken, SHORT, None).run("RESULT = 1")


async def test_other_systems_have_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sys", SimpleNamespace(platform="darwin"))
    with pytest.raises(SandboxUnavailable, match="Linux"):
        await prove_sandbox(PATIENT)


def test_only_python_and_its_libraries_are_shown() -> None:
    shown = python_files()
    assert PACKAGE.startswith("trainer.")
    for source, target in shown.binds:
        path = Path(source)
        assert path.exists()
        assert path.is_file() or target == "/dev/null" or path.name.startswith(("python3", "lib-dynload")), source
        assert os.sep + "site-packages" + os.sep not in source
