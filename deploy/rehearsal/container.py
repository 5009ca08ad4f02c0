"""Starts the rehearsed image as Docker would, watches it by its health check, and stops it by its signal."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.request import urlopen

from deploy.rehearsal.build import RehearsalFailed, Stage, entering, mount

READY_S: Final = 1800.0
STOP_S: Final = 30.0
"""As long as the compose file gives it."""


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
                preexec_fn=entering(stage),
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
        mount("--bind", str(content), str(place))

    def wait_healthy(self, within_s: float = READY_S) -> float:
        """Run the health check in its interval until it passes; returns seconds. Raises RehearsalFailed."""
        health = self._stage.health
        if health is None:
            raise RehearsalFailed("the image has no HEALTHCHECK")

        def passes() -> bool:
            try:
                done = subprocess.run(
                    health.command,
                    env=self._env,
                    preexec_fn=entering(self._stage),
                    executable=_found(self._stage, health.command[0]),
                    capture_output=True,
                    timeout=health.timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False
            return done.returncode == 0

        return self._wait(passes, within_s, health.interval_s)

    def wait_ready(self, within_s: float = READY_S) -> float:
        """Wait until the engine takes requests; returns seconds. Raises RehearsalFailed."""

        def ready() -> bool:
            try:
                with urlopen(f"http://127.0.0.1:{self._stage.ports[0]}/readyz", timeout=10) as answer:
                    return bool(answer.status == 200)
            except OSError:  # refused, or not ready
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
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            lines = (folder / "status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            if not status["State"].strip().startswith("Z"):
                yield int(folder.name), int(status["Uid"].split()[0])
