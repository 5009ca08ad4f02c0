"""Rehearses deploy/Dockerfile where there is no Docker: its instructions one by one, then its command and health check.

    .venv/bin/python deploy/rehearse.py            # builds: some seconds
    .venv/bin/python deploy/rehearse.py --start    # and starts it, until /healthz and /readyz answer, and stops it

The instructions are read from the file, and one that is not known here is an error. They run as root in namespaces of
their own (mounts, network, processes), on a copy-on-write view of this machine in memory: nothing of it is changed.

What differs from a build:

- The base image is this machine: its programs and its Python. What the slim image lacks is not noticed.
- Nothing is downloaded. pip runs as the file says, but finds the packages of the environment that runs this script
  already installed, and refuses where one of them is missing or is not the pinned version. ``apt-get`` only says which
  packages this machine lacks.
- The daemon's part is done here as the reference says: COPY with the ignore file, users, volumes, stop signal. There is
  no seccomp profile and no limit.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

from dockerfile_parse import DockerfileParser

REPO: Final = Path(__file__).resolve().parent.parent
DOCKERFILE: Final = REPO / "deploy" / "Dockerfile"
INSIDE: Final = "HATRACK_REHEARSAL_INSIDE"
"""Set in the process that has namespaces of its own."""
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
READY_S: Final = 1800.0
STOP_S: Final = 30.0
"""As long as the compose file gives it."""
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class RehearsalFailed(Exception):
    """An instruction did not do what it says; the message names it."""


@dataclass(frozen=True, slots=True)
class Health:
    """The image's health check: its command, and seconds."""

    command: tuple[str, ...]
    interval_s: float
    timeout_s: float


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
        """The text with `$NAME` and `${NAME}` replaced; unset ones are empty, as in a build."""
        values = {**self.arguments, **self.env}
        return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], ""), text)

    def inside(self, path: str) -> Path:
        """Where a path of the stage is on this machine."""
        return self.root / os.path.join(self.workdir, path).lstrip("/")


def instructions(path: Path = DOCKERFILE) -> list[tuple[str, str]]:
    """The instructions and their values, in order, without comments."""
    structure = DockerfileParser(path=str(path), cache_content=True).structure
    return [(each["instruction"], each["value"]) for each in structure if each["instruction"] != "COMMENT"]


def is_sent(path: str, ignore: Sequence[str]) -> bool:
    """Whether the build's context has a file: of the ignore file's lines the last one that matches it, or a folder that
    it is in, decides."""
    parts = Path(path).parts
    ways = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    sent = True
    for line in ignore:
        pattern = line.removeprefix("!")
        deep = pattern.removeprefix("**/")
        names = parts if deep != pattern else ways
        if any(fnmatch(name, deep) for name in names):
            sent = line.startswith("!")
    return sent


def parse_health(value: str) -> Health:
    """A HEALTHCHECK with its command in exec form."""
    options, _, command = value.partition("CMD")
    given = dict(re.findall(r"--([a-z-]+)=(\S+)", options))
    return Health(tuple(json.loads(command)), seconds(given["interval"]), seconds(given["timeout"]))


def seconds(duration: str) -> float:
    """Docker's `1m30s` in seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", duration))


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
        self._ignore = [
            line for line in Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines() if line and line[0] != "#"
        ]
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
                raise RehearsalFailed(f"{instruction} is not known to {Path(__file__).name}")
            began = time.monotonic()
            self._does[instruction](value)
            shown = value if len(value) <= 80 else f"{value[:77]}…"
            print(f"{number:2} {instruction} {shown} ({time.monotonic() - began:.1f} s)", flush=True)
        return self.stage

    def _from(self, value: str) -> None:
        self.stage.arguments = self._globals
        name = value.partition(" AS ")[2].strip() or "final"
        image = self.stage.expand(value.split()[0])
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
        target[name] = self._build_args.get(name, default)

    def _env(self, value: str) -> None:
        pairs = [pair.partition("=") for pair in shlex.split(value)]
        self.stage.env |= {name: self.stage.expand(text) for name, _, text in pairs}

    def _workdir(self, value: str) -> None:
        self.stage.workdir = os.path.join(self.stage.workdir, self.stage.expand(value))
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
            preexec_fn=_entering(self.stage),
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


def _entering(stage: Stage) -> Callable[[], None]:
    """What a child does to be in the stage, as its user."""
    user, _, group = stage.user.partition(":")

    def enter() -> None:
        os.chroot(stage.root)
        os.chdir(stage.workdir)
        os.setgroups([])
        os.setgid(int(group or user))
        os.setuid(int(user))

    return enter


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _view_of_this_machine(folder: Path) -> Path:
    """A root that shows this machine's files and keeps what is written to itself."""
    upper, work, root = (folder / name for name in ("upper", "work", "root"))
    for each in (upper, work, root):
        each.mkdir(parents=True)
    _mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(root))
    _mount("-t", "proc", "proc", str(root / "proc"))
    for name in ("dev", "sys"):
        _mount("--rbind", f"/{name}", str(root / name))
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "tmp"))
    return root


def _show(root: Path, path: Path) -> None:
    """Let everybody in the view read a folder of this machine, wherever it is mounted."""
    inside = root / str(path).lstrip("/")
    inside.mkdir(parents=True, exist_ok=True)
    for parent in inside.parents:
        if parent == root:
            break
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    _mount("--rbind", "-o", "ro", str(path), str(inside))


# the start


class Container:
    """The image's process, started as `docker run` would.

    Args:
        stage: The image.
        home: A folder on the disk, for its volume.
    """

    def __init__(self, stage: Stage, home: Path) -> None:
        self._stage = stage
        self._log = home / "log"
        for number, volume in enumerate(stage.volumes):
            self._mount_volume(stage.root / volume.lstrip("/"), home / str(number))
        self._env = {**stage.env, "HOME": stage.env.get("HATRACK_HOME", "/")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*stage.entrypoint, *stage.command],
                env=self._env,
                preexec_fn=_entering(stage),
                stdout=log,
                stderr=log,
                executable=_found(stage, stage.entrypoint[0]),
            )

    @staticmethod
    def _mount_volume(place: Path, content: Path) -> None:
        """A new volume has the owner and the mode of the folder that it is mounted on."""
        content.mkdir()
        owner = place.stat()
        os.chown(content, owner.st_uid, owner.st_gid)
        content.chmod(owner.st_mode & 0o7777)
        _mount("--bind", str(content), str(place))

    def wait_healthy(self, within_s: float = READY_S) -> float:
        """Run the health check in its interval until it passes; returns seconds. Raises RehearsalFailed."""
        health = self._stage.health
        if health is None:
            raise RehearsalFailed("the image has no HEALTHCHECK")

        def passes() -> bool:
            done = subprocess.run(
                health.command,
                env=self._env,
                preexec_fn=_entering(self._stage),
                executable=_found(self._stage, health.command[0]),
                capture_output=True,
                timeout=within_s,
                check=False,
            )
            return done.returncode == 0

        return self._wait(passes, within_s, health.interval_s)

    def wait_ready(self, within_s: float = READY_S) -> float:
        """Wait until the engine takes requests; returns seconds. Raises RehearsalFailed."""

        def ready() -> bool:
            try:
                with urlopen(f"http://127.0.0.1:{self._stage.ports[0]}/readyz", timeout=10) as answer:
                    return bool(answer.status == 200)
            except (URLError, OSError):
                return False

        return self._wait(ready, within_s, 1.0)

    def _wait(self, condition: Callable[[], bool], within_s: float, every_s: float) -> float:
        began = time.monotonic()
        while not condition():
            if self.process.poll() is not None or time.monotonic() - began > within_s:
                raise RehearsalFailed(f"not there after {time.monotonic() - began:.0f} s:\n{self.log()}")
            time.sleep(every_s)
        return time.monotonic() - began

    def check(self) -> None:
        """Whether it listens where a published port leads, and runs and writes as its user. Raises RehearsalFailed."""
        listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
        for port in self._stage.ports:
            if f"00000000:{port:04X}" not in listening:
                raise RehearsalFailed(f"nothing listens on 0.0.0.0:{port}, so a published port leads nowhere")
        wanted = int(self._stage.user.partition(":")[0])
        for pid, owner in processes():
            if owner != wanted:
                raise RehearsalFailed(f"process {pid} runs as {owner}, and not as {wanted}")
        for volume in self._stage.volumes:
            for path in (self._stage.root / volume.lstrip("/")).iterdir():
                if path.lstat().st_uid != wanted:
                    raise RehearsalFailed(f"{path.name} in {volume} belongs to {path.lstat().st_uid}")

    def stop(self) -> float:
        """Stop it as Docker does; returns seconds. Raises RehearsalFailed if it has to be killed, or leaves anybody."""
        began = time.monotonic()
        self.process.send_signal(self._stage.stop_signal)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise RehearsalFailed(f"it was still there {STOP_S:g} s after {self._stage.stop_signal.name}") from None
        if code not in (0, -self._stage.stop_signal):
            raise RehearsalFailed(f"it ended with {code}:\n{self.log()}")
        if left := [pid for pid, _ in processes()]:
            raise RehearsalFailed(f"it left the processes {left}")
        return time.monotonic() - began

    def log(self) -> str:
        """The end of what it said."""
        return self._log.read_text(errors="replace")[-4000:]


def _found(stage: Stage, program: str) -> str:
    """The path of a program in the stage. Raises RehearsalFailed."""
    for folder in stage.env["PATH"].split(":"):
        if os.access(stage.root / folder.lstrip("/") / program, os.X_OK):
            return f"{folder}/{program}"
    raise RehearsalFailed(f"{program} is not on the image's PATH")


def processes() -> Iterator[tuple[int, int]]:
    """Process id and user id of all processes but this one; threads and what has ended are left out."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
            if not status["State"].strip().startswith("Z"):
                yield int(folder.name), int(status["Uid"].split()[0])


# the way in


def _loopback_up() -> None:
    """A new network namespace has a loopback that is down."""
    up, name = 0x1, b"lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", name, up))  # SIOCSIFFLAGS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", action="store_true", help="start the image, too, and stop it once it is ready")
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=[], help="further folders with packages, as pip --target makes them"
    )
    return parser.parse_args()


def main() -> None:
    """Rehearse. Ends with 1 and a message where an instruction does not do what it says."""
    options = _arguments()
    if INSIDE not in os.environ:
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        os.execvpe(command[0], [*command, sys.executable, *sys.argv], os.environ | {INSIDE: "1"})
    _loopback_up()
    own = [Path(path) for path in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))]
    args: dict[str, Any] = {"PYTHON": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    args["KIND"] = "cpu" if version("torch").endswith("+cpu") else "gpu"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as memory, tempfile.TemporaryDirectory() as disk:
        _mount("-t", "tmpfs", "tmpfs", memory)
        try:
            packages = [path.resolve() for path in (*own, *options.packages)]
            stage = Rehearsal(Path(memory), packages, args).build()
            if options.start:
                container = Container(stage, Path(disk))
                print(f"healthy after {container.wait_healthy():.0f} s", flush=True)
                print(f"ready after {container.wait_ready():.0f} s more", flush=True)
                container.check()
                print(f"stopped by {stage.stop_signal.name} after {container.stop():.0f} s")
        except RehearsalFailed as error:
            sys.exit(str(error))
        finally:
            subprocess.run(["umount", "-R", "-l", memory], check=False)


if __name__ == "__main__":
    main()
