"""The directories of all runs of one kind, as the trainer uses them: created atomically, read, cleaned up.

RUNS/ID/          one run; `trainer.runs.protocol` says what is in it
RUNS/.new-ID/     one that is being created
SPENT/ID          keys of finished runs, until the gateway has revoked them
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from trainer.durable import publish, replace_file
from trainer.installation import Installation
from trainer.runs import protocol
from trainer.runs.protocol import Control, WorkerEvent

Model = TypeVar("Model", bound=BaseModel)
MAX_TAIL_BYTES: Final = 1024 * 1024
"""Largest part of events.jsonl that is read at once."""
MAX_LINE_BYTES: Final = 256 * 1024


class RunDirectories:
    """The run directories under `directory`. Every method blocks, briefly.

    Args:
        directory: The directory of the kind's runs.
        keys_to_revoke: Holds the keys of finished runs until they are revoked.
        large_files: Names of the files and directories of a run that are deleted some time after its end.
        installation: Where this machine's gateway and base are, for `relocate`.
    """

    def __init__(
        self,
        directory: Path,
        keys_to_revoke: Path,
        large_files: tuple[str, ...],
        installation: Installation | None = None,
    ) -> None:
        self.directory = directory
        self.keys_to_revoke = keys_to_revoke
        self._installation = installation
        self._large_files = (*large_files, protocol.LOG, protocol.OLD_LOG)

    def open(self) -> None:
        """Create missing directories (mode 0700), and delete run directories whose creation was interrupted."""
        for path in (self.directory, self.keys_to_revoke):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
        for leftover in self.directory.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def path_of(self, run_id: str) -> Path:
        """The run's directory."""
        return self.directory / run_id

    def create(self, run_id: str, spec: BaseModel, key: str, *, shared_key: bool = False) -> None:
        """Create a run's directory atomically; ``shared_key``: the key is its parent's. Raises OSError."""
        partial = self.directory / f".new-{run_id}"
        partial.mkdir(mode=0o700)
        try:
            (partial / protocol.SPEC).write_text(spec.model_dump_json() + "\n")
            descriptor = os.open(partial / protocol.KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
            if shared_key:
                (partial / protocol.SHARED_KEY).touch(0o600)
            (partial / protocol.CONTROL).write_text(Control.RUN + "\n")
            publish(partial, self.path_of(run_id))
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def discard(self, run_id: str) -> None:
        """Remove the directory of a run that was not recorded."""
        # the key first: what is left of it after a crash is revoked, unless the marker says that it is the parent's
        (self.path_of(run_id) / protocol.KEY).unlink(missing_ok=True)
        shutil.rmtree(self.path_of(run_id), ignore_errors=True)

    def ids(self) -> list[str]:
        """The ids of all runs that have a directory."""
        return sorted(path.name for path in self.directory.iterdir() if not path.name.startswith("."))

    def worked_on(self) -> list[str]:
        """Those of them in which a worker has begun."""
        return [run_id for run_id in self.ids() if (self.path_of(run_id) / protocol.EVENTS).exists()]

    def relocate(self, run_id: str) -> None:
        """Point a run at this machine's gateway, and at its base if the directory that the run names is gone.

        Since a run was created, its home may have been restored elsewhere, the gateway have got another port, or the
        base another name.

        Raises:
            OSError: The run's directory cannot be written.
            BaseGone: The run trains, and its base is not served any more.
        """
        content = self.read_bytes(run_id, protocol.SPEC)
        if self._installation is None or content is None:
            return
        try:
            spec: dict[str, Any] = json.loads(content)
        except ValueError:
            return  # the worker says what is wrong with it
        places = {"gateway": self._installation.gateway}
        if "base_dir" in spec:
            here = self._installation.of_run(spec.get("base_name"), Path(spec["base_dir"]))
            places["base_name"] = here.base_name
            if not (Path(spec["base_dir"]) / "config.json").is_file():
                places["base_dir"] = str(here.base)
        if any(spec.get(name) != place for name, place in places.items()):
            replace_file(self.path_of(run_id) / protocol.SPEC, json.dumps(spec | places) + "\n")

    def set_control(self, run_id: str, control: Control) -> None:
        """Atomically write the control file for the run's worker."""
        self._replace(run_id, protocol.CONTROL, control)

    def write(self, run_id: str, name: str, content: BaseModel) -> None:
        """Atomically write a file of the run; no worker may be running."""
        self._replace(run_id, name, content.model_dump_json())

    def read(self, run_id: str, name: str, model: type[Model]) -> Model | None:
        """A file of the run as a ``model``; None if it is missing or does not validate."""
        try:
            return model.model_validate_json((self.path_of(run_id) / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def read_bytes(self, run_id: str, name: str) -> bytes | None:
        """The bytes of a file of the run; None if it is missing."""
        try:
            return (self.path_of(run_id) / name).read_bytes()
        except FileNotFoundError:
            return None

    def key(self, run_id: str) -> str | None:
        """The run's key; None once the run is over."""
        content = self.read_bytes(run_id, protocol.KEY)
        return None if content is None else content.decode().strip()

    def worker(self, run_id: str) -> int | None:
        """The process id of the run's worker; 0 if it has not written it yet; None if there is no worker."""
        try:
            lock = os.open(self.path_of(run_id) / protocol.LOCK, os.O_RDWR | os.O_CLOEXEC)
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
        """The complete lines of events.jsonl from `offset` on, and the offset to continue from.

        A line that is not an event (a worker was killed while writing it) is skipped; one without a newline yet is left
        for the next call. If the file is shorter than `offset` (the machine lost power before the end reached the disk,
        while the database kept the offset), reading continues from the file's end.
        """
        try:
            with (self.path_of(run_id) / protocol.EVENTS).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < offset:
                    return [], size
                if size > offset:  # the offset must not be recorded before these events are on the disk
                    os.fsync(file.fileno())
                file.seek(offset)
                content = file.read(min(MAX_TAIL_BYTES, size - offset))
        except FileNotFoundError:
            return [], offset
        end = content.rfind(b"\n") + 1
        if not end and len(content) > MAX_LINE_BYTES:
            end = len(content)  # no event is this long: skip it rather than wait for ever
        return list(_events(content[:end])), offset + end

    def last_heartbeat(self, run_id: str, names: tuple[str, ...]) -> float:
        """When any of these files was last modified, in Unix seconds; 0 if none exists."""
        newest = 0.0
        for name in names:
            try:
                newest = max(newest, (self.path_of(run_id) / name).stat().st_mtime)
            except OSError:
                continue
        return newest

    def queue_key_revocation(self, run_id: str) -> None:
        """Move the key of a finished run to where it waits to be revoked; delete a child run's. Idempotent."""
        key = self.path_of(run_id) / protocol.KEY
        if key.with_name(protocol.SHARED_KEY).exists():
            key.unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            key.replace(self.keys_to_revoke / run_id)

    def clear(self, run_id: str) -> None:
        """Delete the run's large files and its log."""
        for name in self._large_files:
            path = self.path_of(run_id) / name
            # a killed worker leaves half of the file or directory that it was replacing
            for left in (path, path.with_name(f".{name}.partial"), path.with_name(f".{name}.retired")):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def _replace(self, run_id: str, name: str, content: str) -> None:
        self.path_of(run_id).mkdir(
            exist_ok=True
        )  # a directory that somebody has removed must not keep its run from ending
        replace_file(self.path_of(run_id) / name, content + "\n")


def _events(content: bytes) -> Iterator[WorkerEvent]:
    for line in content.splitlines():
        try:
            yield WorkerEvent.model_validate_json(line)
        except ValidationError:
            continue
