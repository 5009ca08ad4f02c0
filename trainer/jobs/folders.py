"""Folders of what is done in processes of its own, as the trainer uses them: made whole, read, cleared.

FOLDERS/ID/          one job, or one evaluation
FOLDERS/.new-ID/     one that is being made
SPENT/ID             keys of those that are over, until the gateway has revoked them
"""

from __future__ import annotations

import fcntl
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from trainer.durable import publish, replace_file
from trainer.jobs import spec
from trainer.jobs.spec import Control

Model = TypeVar("Model", bound=BaseModel)


class Folders(ABC):
    """The folders under `directory`. Every method is quick, and blocks."""

    def __init__(self, directory: Path, spent: Path) -> None:
        self.directory = directory
        self.spent = spent

    def open(self) -> None:
        """Make what is missing, for nobody else's eyes, and forget what was never finished."""
        for path in (self.directory, self.spent):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
        for leftover in self.directory.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def of(self, job_id: str) -> Path:
        """The job's folder."""
        return self.directory / job_id

    def make_folder(self, job_id: str, job: BaseModel, key: str) -> None:
        """Make a job's folder, whole or not at all. Raises OSError."""
        partial = self.directory / f".new-{job_id}"
        partial.mkdir(mode=0o700)
        try:
            (partial / spec.SPEC).write_text(job.model_dump_json() + "\n")
            descriptor = os.open(partial / spec.KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
            (partial / spec.CONTROL).write_text(Control.RUN + "\n")
            publish(partial, self.of(job_id))
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def discard(self, job_id: str) -> None:
        """Remove the folder of a job that never came to be."""
        shutil.rmtree(self.of(job_id), ignore_errors=True)

    def ids(self) -> list[str]:
        """Of all folders."""
        return sorted(path.name for path in self.directory.iterdir() if not path.name.startswith("."))

    def order(self, job_id: str, control: Control) -> None:
        """Tell the worker what is wanted, in one step."""
        self._replace(job_id, spec.CONTROL, control)

    def write(self, job_id: str, name: str, content: BaseModel) -> None:
        """Write a file of the job's, in one step; no worker may be at the job."""
        self._replace(job_id, name, content.model_dump_json())

    def read(self, job_id: str, name: str, model: type[Model]) -> Model | None:
        """A file of the job's as a ``model``, or None where it is not there or is not one."""
        try:
            return model.model_validate_json((self.of(job_id) / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def key(self, job_id: str) -> str | None:
        """The job's key; None once it is over."""
        try:
            return (self.of(job_id) / spec.KEY).read_text().strip()
        except FileNotFoundError:
            return None

    def worker(self, job_id: str) -> int | None:
        """The process id of the worker that is at the job; 0 where there is one that has not said it yet; else None."""
        try:
            lock = os.open(self.of(job_id) / spec.LOCK, os.O_RDWR | os.O_CLOEXEC)
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

    def spend_key(self, job_id: str) -> None:
        """The job needs its key no more: it is kept until the gateway has revoked it. Doing it again is no harm."""
        try:
            (self.of(job_id) / spec.KEY).replace(self.spent / job_id)
        except FileNotFoundError:
            return

    @abstractmethod
    def clear(self, job_id: str) -> None:
        """Delete what is big. What that is, the kinds of folders say."""

    def _replace(self, job_id: str, name: str, content: str) -> None:
        self.of(job_id).mkdir(exist_ok=True)  # a folder that somebody has removed must not keep its job from ending
        replace_file(self.of(job_id) / name, content + "\n")
