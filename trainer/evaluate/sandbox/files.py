"""What the sandbox shows of this machine: a Python without its site-packages, and the libraries that it loads."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import SandboxUnavailable

TIMEOUT_S: Final = 20
MASKED: Final = ("site-packages", "dist-packages")
ALWAYS: Final = ("/dev/null", "/etc/ld.so.cache")


@dataclass(frozen=True, slots=True)
class PythonFiles:
    """A Python that can be shown: its executable, and what is bound where (source without links, target)."""

    python: Path
    binds: tuple[tuple[str, str], ...]
    masked: tuple[str, ...]


def python_files() -> PythonFiles:
    """The Python that runs this, without any environment that it runs in.

    Raises:
        SandboxUnavailable: Its libraries cannot be listed, as with a libc that is not glibc.
    """
    # of a virtual environment, the Python that it was made from; only there is a standard library
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    modules = Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})).resolve() / "lib-dynload"
    directories = [library] if modules.is_relative_to(library) else [library, modules]
    loader = _loader(python)
    wanted = {loader, *(name for name in ALWAYS if Path(name).exists())}
    for binary in (python, *sorted(modules.glob("*.so"))):
        wanted |= set(_libraries(loader, binary))
    binds = [(str(python), str(python)), *((str(path), str(path)) for path in directories)]
    binds += [(str(Path(name).resolve()), name) for name in sorted(wanted)]
    masked = [str(path / name) for path in directories for name in MASKED if (path / name).is_dir()]
    return PythonFiles(python, tuple(binds), tuple(masked))


def filter_library() -> str | None:
    """libseccomp's name, where this machine has it."""
    return ctypes.util.find_library("seccomp")


def _loader(python: Path) -> str:
    """The dynamic loader that the kernel starts a Python with: the one line of its libraries that is a path alone."""
    for line in _run([str(python)], {"LD_TRACE_LOADED_OBJECTS": "1"}):
        name = line.split(" (")[0].strip()
        if name.startswith("/") and "=>" not in line:
            return name
    raise SandboxUnavailable(f"{python} names no dynamic loader: its libraries cannot be shown in a sandbox")


def _libraries(loader: str, binary: Path) -> list[str]:
    found = []
    for line in _run([loader, "--list", str(binary)], {}):
        _, arrow, rest = line.partition("=>")
        name = rest.split(" (")[0].strip()
        if arrow and name.startswith("/"):
            found.append(name)
    return found


def _run(command: list[str], environment: dict[str, str]) -> list[str]:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise SandboxUnavailable(f"the libraries of this Python cannot be listed: {error}") from error
    return done.stdout.splitlines()
