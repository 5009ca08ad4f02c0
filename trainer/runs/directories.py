"""The directories of all runs of one kind, as the trainer uses them: made whole, read, cleared.

RUNS/ID/          one run; `trainer.runs.protocol` says what is in it
RUNS/.new-ID/     one that is being made
SPENT/ID          keys of runs that are over, until the gateway has revoked them
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from trainer.durable import publish, replace_file
from trainer.runs import protocol
from trainer.runs.protocol import Control, WorkerEvent

Model = TypeVar("Model", bound=BaseModel)
TAIL_BYTES: Final = 1024 * 1024
"""Most of events.jsonl that is read at once."""
LONGEST_LINE: Final = 256 * 1024


class RunDirectories:
    """The run directories under `directory`. Every method is quick, and blocks.

    Args:
        directory: The directory of the kind's runs.
        spent: Where the keys of ended runs wait to be revoked.
        big: Names of the files and directories in a run's own that are deleted some time after its end.
    """

    def __init__(self, directory: Path, spent: Path, big: tuple[str, ...]) -> None:
        self.directory = directory
        self.spent = spent
        self._big = (*big, protocol.LOG, protocol.OLD_LOG)

    def open(self) -> None:
        """Make what is missing, for nobody else's eyes, and forget what was never finished."""
        for path in (self.directory, self.spent):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
        for leftover in self.directory.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def of(self, run_id: str) -> Path:
        """The run's directory."""
        return self.directory / run_id

    def make(self, run_id: str, spec: BaseModel, key: str) -> None:
        """Make a run's directory, whole or not at all. Raises OSError."""
        partial = self.directory / f".new-{run_id}"
        partial.mkdir(mode=0o700)
        try:
            (partial / protocol.SPEC).write_text(spec.model_dump_json() + "\n")
            descriptor = os.open(partial / protocol.KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
            (partial / protocol.CONTROL).write_text(Control.RUN + "\n")
            publish(partial, self.of(run_id))
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def discard(self, run_id: str) -> None:
        """Remove the directory of a run that never came to be."""
        shutil.rmtree(self.of(run_id), ignore_errors=True)

    def ids(self) -> list[str]:
        """Of all directories."""
        return sorted(path.name for path in self.directory.iterdir() if not path.name.startswith("."))

    def order(self, run_id: str, control: Control) -> None:
        """Tell the worker what is wanted, in one step."""
        self._replace(run_id, protocol.CONTROL, control)

    def write(self, run_id: str, name: str, content: BaseModel) -> None:
        """Write a file of the run's, in one step; no worker may be at the run."""
        self._replace(run_id, name, content.model_dump_json())

    def read(self, run_id: str, name: str, model: type[Model]) -> Model | None:
        """A file of the run's as a ``model``, or None where it is not there or is not one."""
        try:
            return model.model_validate_json((self.of(run_id) / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def content(self, run_id: str, name: str) -> bytes | None:
        """A file of the run's, or None where it is not there."""
        try:
            return (self.of(run_id) / name).read_bytes()
        except FileNotFoundError:
            return None

    def key(self, run_id: str) -> str | None:
        """The run's key; None once it is over."""
        content = self.content(run_id, protocol.KEY)
        return None if content is None else content.decode().strip()

    def worker(self, run_id: str) -> int | None:
        """The process id of the run's worker; 0 where there is one that has not written it yet; else None."""
        try:
            lock = os.open(self.of(run_id) / protocol.LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(lock)
        return None

    def tail(self, run_id: str, offset: int) -> tuple[list[WorkerEvent], int]:
        """The whole lines of events.jsonl from `offset` on, and where the next ones will begin.

        A line that is no event (a worker was killed in the middle of it) is left out; one that has no end yet is left
        for the next time. A file that is shorter than that (the machine lost power before the end was on the disk, and
        the record was not lost) is gone on with from its end.
        """
        try:
            with (self.of(run_id) / protocol.EVENTS).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < offset:
                    return [], size
                if size > offset:  # the record that these were read must not be there before they are
                    os.fsync(file.fileno())
                file.seek(offset)
                content = file.read(min(TAIL_BYTES, size - offset))
        except FileNotFoundError:
            return [], offset
        end = content.rfind(b"\n") + 1
        if not end and len(content) > LONGEST_LINE:
            end = len(content)  # no event is so long: never stand still before it
        return list(_events(content[:end])), offset + end

    def last_sign(self, run_id: str, names: tuple[str, ...]) -> float:
        """When one of these files was last written to, Unix seconds; 0 where none is there."""
        found = 0.0
        for name in names:
            try:
                found = max(found, (self.of(run_id) / name).stat().st_mtime)
            except OSError:
                continue
        return found

    def spend_key(self, run_id: str) -> None:
        """The run needs its key no more: it is kept until the gateway has revoked it. Doing it again is no harm."""
        try:
            (self.of(run_id) / protocol.KEY).replace(self.spent / run_id)
        except FileNotFoundError:
            return

    def clear(self, run_id: str) -> None:
        """Delete what is big, and the log."""
        for name in self._big:
            path = self.of(run_id) / name
            # a worker that was killed leaves the half of a file or directory that it was replacing
            for left in (path, path.with_name(f".{name}.partial"), path.with_name(f".{name}.retired")):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def _replace(self, run_id: str, name: str, content: str) -> None:
        self.of(run_id).mkdir(exist_ok=True)  # a directory that somebody has removed must not keep its run from ending
        replace_file(self.of(run_id) / name, content + "\n")


def _events(content: bytes) -> Iterator[WorkerEvent]:
    for line in content.splitlines():
        try:
            yield WorkerEvent.model_validate_json(line)
        except ValidationError:
            continue
