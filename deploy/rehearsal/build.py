"""Runs the Dockerfile's instructions on a copy-on-write view of this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.rehearsal.dockerfile import (
    DOCKERFILE,
    REPO,
    Health,
    expand,
    ignore_lines,
    instructions,
    is_sent,
    parse_health,
)

SHIMS: Final = "/rehearsal/bin"
PYTHON_PREFIX: Final = sys.base_prefix
BASE_ENV: Final = {
    "PATH": f"{SHIMS}:{PYTHON_PREFIX}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
"""What the base image's environment has; the first folder is the rehearsal's."""
APT_GET: Final = """#!/bin/sh
[ "$1" = install ] || exit 0
for name in "$@"; do
  case "$name" in install|-*) ;; *)
    dpkg-query -W "$name" >/dev/null 2>&1 || echo "this machine lacks the package $name" ;;
  esac
done
"""


class RehearsalFailed(Exception):
    """An instruction did not do what it says; the message names it."""


@dataclass
class Stage:
    """One stage: its file system, and what its instructions have set so far."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: dict(BASE_ENV))
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    stop_signal: signal.Signals = signal.SIGTERM
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health: Health | None = None

    def expand(self, text: str) -> str:
        """The text with the stage's variables replaced; those of the environment go before arguments."""
        return expand(text, {**self.arguments, **self.env})

    def inside(self, path: str) -> Path:
        """Where a path of the stage is on this machine."""
        return self.root / str(Path(self.workdir) / path).lstrip("/")


class Rehearsal:
    """Runs the instructions.

    Args:
        scratch: An empty folder on a file system of its own.
        packages: Folders with the packages that stand in for downloads.
        build_args: As `--build-arg`.
    """

    def __init__(self, scratch: Path, packages: Sequence[Path], build_args: Mapping[str, str]) -> None:
        self._scratch = scratch
        self._packages = packages
        self._build_args = dict(build_args)
        self._stages: dict[str, Stage] = {}
        self._globals: dict[str, str] = {}
        self._ignore = ignore_lines()
        self.stage = Stage(scratch)
        self._does: dict[str, Callable[[str], None]] = {
            "FROM": self._from,
            "ARG": self._arg,
            "ENV": self._env,
            "WORKDIR": self._workdir,
            "COPY": self._copy,
            "RUN": self._run,
            "USER": lambda value: setattr(self.stage, "user", self.stage.expand(value)),
            "VOLUME": lambda value: self.stage.volumes.append(self.stage.expand(value)),
            "EXPOSE": lambda value: self.stage.ports.append(int(self.stage.expand(value))),
            "HEALTHCHECK": lambda value: setattr(self.stage, "health", parse_health(value)),
            "STOPSIGNAL": lambda value: setattr(self.stage, "stop_signal", signal.Signals[value]),
            "ENTRYPOINT": lambda value: setattr(self.stage, "entrypoint", tuple(json.loads(value))),
            "CMD": lambda value: setattr(self.stage, "command", tuple(json.loads(value))),
        }

    @property
    def known(self) -> set[str]:
        """The instructions that it can run."""
        return set(self._does)

    def build(self) -> Stage:
        """Run all instructions; returns the last stage. Raises RehearsalFailed."""
        for number, (instruction, value) in enumerate(instructions(), 1):
            if instruction not in self._does:
                raise RehearsalFailed(f"{instruction} is not known to this rehearsal")
            began = time.monotonic()
            self._does[instruction](value)
            shown = value if len(value) <= 80 else f"{value[:77]}…"
            print(f"{number:2} {instruction} {shown} ({time.monotonic() - began:.1f} s)", flush=True)
        return self.stage

    def _from(self, value: str) -> None:
        name = value.partition(" AS ")[2].strip() or "final"
        image = expand(value.split()[0], self._globals)
        if not image.startswith(f"python:{sys.version_info[0]}.{sys.version_info[1]}"):
            raise RehearsalFailed(f"FROM {image}: this machine's Python is {sys.version.split()[0]}")
        self.stage = self._stages[name] = Stage(_view_of_this_machine(self._scratch / name))
        self._stand_in()

    def _stand_in(self) -> None:
        """What the base image has: `python`, and here `apt-get`."""
        shims = self.stage.root / SHIMS.lstrip("/")
        shims.mkdir(parents=True)
        python = f'#!/bin/sh\nexec {shlex.quote(os.path.realpath(sys.executable))} "$@"\n'
        for name, text in {"python": python, "apt-get": APT_GET}.items():
            (shims / name).write_text(text)
            (shims / name).chmod(0o755)
        for needed in (Path(PYTHON_PREFIX), *self._packages):
            _show(self.stage.root, needed)

    def _arg(self, value: str) -> None:
        name, _, default = value.partition("=")
        target = self.stage.arguments if self._stages else self._globals
        target[name] = self._build_args.get(name, default or self._globals.get(name, ""))

    def _env(self, value: str) -> None:
        pairs = [pair.partition("=") for pair in shlex.split(value)]
        self.stage.env |= {name: self.stage.expand(text) for name, _, text in pairs}

    def _workdir(self, value: str) -> None:
        self.stage.workdir = str(Path(self.stage.workdir) / self.stage.expand(value))
        self.stage.inside(".").mkdir(parents=True, exist_ok=True)

    def _copy(self, value: str) -> None:
        *sources, target = [self.stage.expand(part) for part in value.split() if not part.startswith("--")]
        origin = re.search(r"--from=(\S+)", value)
        into = self.stage.inside(target)
        for source in sources:
            if origin is not None:
                path = self._stages[origin[1]].root / source.lstrip("/")
            elif is_sent(source, self._ignore):
                path = REPO / source
            else:
                raise RehearsalFailed(f"COPY {source}: {DOCKERFILE.name}.dockerignore keeps it out of the context")
            if path.is_dir():
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=self._left_out(path))
            else:
                single = into / path.name if target.endswith("/") or len(sources) > 1 else into
                single.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, single)

    def _left_out(self, top: Path) -> Callable[[str, list[str]], list[str]]:
        """What of a folder of the context a build does not see; of another stage's, everything is copied."""

        def ignored(folder: str, names: list[str]) -> list[str]:
            if not top.is_relative_to(REPO):
                return []
            return [name for name in names if not is_sent(str((Path(folder) / name).relative_to(REPO)), self._ignore)]

        return ignored

    def _run(self, value: str) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", value],
            env={**self.stage.env, **self.stage.arguments, "HOME": "/root", "PIP_NO_INDEX": "1"},
            preexec_fn=entering(self.stage),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            if "lacks" in line:
                print(f"   {line}")
        if done.returncode != 0:
            raise RehearsalFailed(f"RUN {value}\nended with {done.returncode}:\n{done.stdout[-4000:]}")
        for site in self.stage.inside(".venv").glob("lib/python*/site-packages"):
            self._fill(site)

    def _fill(self, site: Path) -> None:
        """Give a new environment the packages that stand in for downloads, and take what only these may bring."""
        path = site / "zz_rehearsal.pth"
        if not path.exists():
            for name in ("setuptools", "setuptools-*", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"):
                for own in site.glob(name):
                    shutil.rmtree(own) if own.is_dir() else own.unlink()
            path.write_text("".join(f"{folder}\n" for folder in self._packages))


def entering(stage: Stage) -> Callable[[], None]:
    """What a child does to be in the stage, as its user."""
    user, _, group = stage.user.partition(":")

    def enter() -> None:
        os.chroot(stage.root)
        os.chdir(stage.workdir)
        os.setgroups([])
        os.setgid(int(group or user))
        os.setuid(int(user))

    return enter


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _view_of_this_machine(folder: Path) -> Path:
    """A root that shows this machine's files and keeps what is written to itself."""
    upper, work, root = (folder / name for name in ("upper", "work", "root"))
    for each in (upper, work, root):
        each.mkdir(parents=True)
    mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(root))
    mount("-t", "proc", "proc", str(root / "proc"))
    for name in ("dev", "sys"):
        mount("--rbind", f"/{name}", str(root / name))
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "tmp"))
    return root


def _show(root: Path, path: Path) -> None:
    """Let everybody in the view read a folder of this machine, wherever it is mounted."""
    inside = root / str(path).lstrip("/")
    inside.mkdir(parents=True, exist_ok=True)
    for parent in inside.parents:
        if parent == root:
            break
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    mount("--rbind", "-o", "ro", str(path), str(inside))
