"""The files visible in the sandbox: a Python without site-packages, and the libraries that it loads."""

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
    """The files of a Python: its executable, bind mounts (resolved source, target), and masked directories."""

    python: Path
    binds: tuple[tuple[str, str], ...]
    masked: tuple[str, ...]


def python_files() -> PythonFiles:
    """The files of the running Python, without its virtual environment.

    Raises:
        SandboxUnavailable: Its libraries cannot be listed, for example because libc is not glibc.
    """
    # in a virtual environment: the Python that it was created from, which has the standard library
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    modules = Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})).resolve() / "lib-dynload"
    directories = [library] if modules.is_relative_to(library) else [library, modules]
    loader = _loader(python)
    libraries = {loader, *(name for name in ALWAYS if Path(name).exists())}
    for binary in (python, *sorted(modules.glob("*.so"))):
        libraries |= set(_libraries(loader, binary))
    binds = [(str(python), str(python)), *((str(path), str(path)) for path in directories)]
    binds += [(str(Path(name).resolve()), name) for name in sorted(libraries)]
    masked = [str(path / name) for path in directories for name in MASKED if (path / name).is_dir()]
    return PythonFiles(python, tuple(binds), tuple(masked))


def filter_library() -> str | None:
    """The file name of libseccomp; None if this machine does not have it."""
    return ctypes.util.find_library("seccomp")


def _loader(python: Path) -> str:
    """The dynamic loader of a Python: the only line in its list of libraries that is just a path."""
    for line in _run([str(python)], {"LD_TRACE_LOADED_OBJECTS": "1"}):
        name = line.split(" (")[0].strip()
        if name.startswith("/") and "=>" not in line:
            return name
    raise SandboxUnavailable(f"{python} has no dynamic loader, so its libraries cannot be made visible in a sandbox")


def _libraries(loader: str, binary: Path) -> list[str]:
    paths = []
    for line in _run([loader, "--list", str(binary)], {}):
        _, arrow, rest = line.partition("=>")
        name = rest.split(" (")[0].strip()
        if arrow and name.startswith("/"):
            paths.append(name)
    return paths


def _run(command: list[str], environment: dict[str, str]) -> list[str]:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise SandboxUnavailable(f"cannot list the libraries of this Python: {error}") from error
    return done.stdout.splitlines()
