"""A run's directory as its worker uses it: lock, control file, append-only events, atomically written files."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ValidationError

from trainer.durable import replace_file
from trainer.errors import RunDirectoryBusy
from trainer.runs import protocol
from trainer.runs.protocol import Control, OutsideCharge, WorkerEvent

Model = TypeVar("Model", bound=BaseModel)


class RunDirectory:
    """One run's directory, locked by its worker while the context manager is active.

    Raises:
        RunDirectoryBusy: On entering, if another worker holds the lock.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = -1
        self._events = -1

    def __enter__(self) -> Self:
        self._lock = os.open(self.directory / protocol.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise RunDirectoryBusy(f"another worker holds the lock of {self.directory}") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self._events = os.open(
            self.directory / protocol.EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._end_torn_line()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._events)
        os.close(self._lock)

    def path(self, name: str) -> Path:
        """The path of a file in the directory."""
        return self.directory / name

    def control(self) -> Control:
        """The trainer's current request; `run` if there is none."""
        try:
            return Control(self.path(protocol.CONTROL).read_text().strip())
        except (FileNotFoundError, ValueError):
            return Control.RUN

    def emit_event(
        self,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        type: Literal["message", "metrics", "charge"] = "message",
        **data: Any,
    ) -> None:
        """Append an event."""
        event = WorkerEvent(at=time.time(), level=level, type=type, message=message, data=data)
        os.write(self._events, event.model_dump_json().encode() + b"\n")

    def record_charge(self, charge: OutsideCharge) -> None:
        """Append what an endpoint outside has charged: once this returns, a kill of this process does not lose it."""
        self.emit_event(f"{charge.endpoint} answered", type="charge", **charge.model_dump())

    def metrics(self) -> list[dict[str, Any]]:
        """The data of all `metrics` events so far, one per step, ordered by step."""
        by_step: dict[int, dict[str, Any]] = {}
        for line in self.path(protocol.EVENTS).read_bytes().splitlines():
            try:
                event = WorkerEvent.model_validate_json(line)
            except ValidationError:
                continue  # cut off when a worker was killed
            if event.type == "metrics" and "step" in event.data:
                by_step[int(event.data["step"])] = event.data
        return [by_step[step] for step in sorted(by_step)]

    def read(self, name: str, model: type[Model]) -> Model | None:
        """The file as a ``model``; None if it is missing or does not validate."""
        try:
            return model.model_validate_json(self.path(name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, name: str, content: BaseModel) -> None:
        """Atomically write a file and flush it to the disk."""
        replace_file(self.path(name), content.model_dump_json() + "\n")

    def _end_torn_line(self) -> None:
        """End a line that a killed worker left unfinished, so that it does not corrupt the next one."""
        path = self.path(protocol.EVENTS)
        size = path.stat().st_size
        if size:
            with path.open("rb") as file:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    os.write(self._events, b"\n")
