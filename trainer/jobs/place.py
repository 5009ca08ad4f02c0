"""The jobs' folders as the trainer uses them (``trainer.jobs.spec`` says what is in one): made whole, read, cleared.

JOBS/ID/             one job
JOBS/.new-ID/        one that is being made
SPENT/ID             keys of jobs that are over, until the gateway has revoked them
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from trainer.data.report import Report
from trainer.durable import publish
from trainer.jobs import spec
from trainer.jobs.spec import Control, JobSpec, Plan, Result, WorkerEvent

Model = TypeVar("Model", bound=BaseModel)
LOG: Final = "worker.log"
PARENT: Final = "parent"
TAIL_BYTES: Final = 1024 * 1024
"""Most of events.jsonl that is read at once."""
LONGEST_LINE: Final = 256 * 1024
BIG: Final = (spec.CHECKPOINTS, spec.OUTPUT, PARENT)
BIG_FILES: Final = (spec.TRAINING, spec.HELD_OUT)


class Place:
    """The folders of all jobs under `directory`. Every method is quick, and blocks."""

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

    def make(self, job: JobSpec, key: str) -> None:
        """Make a job's folder, whole or not at all. Raises OSError."""
        partial = self.directory / f".new-{job.id}"
        partial.mkdir(mode=0o700)
        try:
            (partial / spec.SPEC).write_text(job.model_dump_json() + "\n")
            descriptor = os.open(partial / spec.KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
            (partial / spec.CONTROL).write_text(Control.RUN + "\n")
            publish(partial, self.of(job.id))
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

    def spec(self, job_id: str) -> JobSpec | None:
        """What is to be done."""
        return self._read(job_id, spec.SPEC, JobSpec)

    def plan(self, job_id: str) -> Plan | None:
        """What is trained, once the data were looked at."""
        return self._read(job_id, spec.PLAN, Plan)

    def write(self, job_id: str, name: str, content: BaseModel) -> None:
        """Write plan.json or result.json, in one step; no worker may be at the job."""
        self._replace(job_id, name, content.model_dump_json())

    def report(self, job_id: str) -> Report | None:
        """The quality report, as far as there is one."""
        return self._read(job_id, spec.REPORT, Report)

    def result(self, job_id: str) -> Result | None:
        """How the worker says that the job ended."""
        return self._read(job_id, spec.RESULT, Result)

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

    def progress(self, job_id: str) -> str:
        """A word that changes with everything that a worker has brought to an end: what a crash does not undo."""
        folder = self.of(job_id)
        steps = sorted(path.name for path in (folder / spec.CHECKPOINTS).glob("step-*"))
        there = [name for name in (spec.TRAINING, spec.HELD_OUT, spec.PLAN, spec.OUTPUT) if (folder / name).exists()]
        return " ".join([*there, *steps[-1:]])

    def tail(self, job_id: str, offset: int) -> tuple[list[WorkerEvent], int]:
        """The whole lines of events.jsonl from `offset` on, and where the next ones will begin.

        A line that is no event (a worker was killed in the middle of it) is left out; one that has no end yet is left
        for the next time.
        """
        try:
            with (self.of(job_id) / spec.EVENTS).open("rb") as file:
                file.seek(offset)
                content = file.read(TAIL_BYTES)
        except FileNotFoundError:
            return [], offset
        end = content.rfind(b"\n") + 1
        if not end and len(content) > LONGEST_LINE:
            end = len(content)  # no event is so long: never stand still before it
        return list(_events(content[:end])), offset + end

    def spend_key(self, job_id: str) -> None:
        """The job needs its key no more: it is kept until the gateway has revoked it. Doing it again is no harm."""
        try:
            (self.of(job_id) / spec.KEY).replace(self.spent / job_id)
        except FileNotFoundError:
            return

    def clear(self, job_id: str) -> None:
        """Delete what is big: data, checkpoints, the exported adapter."""
        folder = self.of(job_id)
        for name in BIG:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in BIG_FILES:
            (folder / name).unlink(missing_ok=True)

    def _replace(self, job_id: str, name: str, content: str) -> None:
        partial = self.of(job_id) / f".{name}.partial"
        partial.parent.mkdir(exist_ok=True)  # a folder that somebody has removed must not keep its job from ending
        with partial.open("w") as file:
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.of(job_id) / name)

    def _read(self, job_id: str, name: str, model: type[Model]) -> Model | None:
        try:
            return model.model_validate_json((self.of(job_id) / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None


def summary(report: Report) -> dict[str, Any]:
    """A quality report in short, as a job shows it."""
    return {
        "format": report.format,
        "examples": report.examples,
        "trained_on": report.trained_on,
        "dropped": report.dropped,
        "held_out": {"examples": report.held_out.examples, "source": report.held_out.source},
        "findings": [
            {"code": finding.code, "severity": finding.severity, "count": finding.count} for finding in report.findings
        ],
        "size": report.size,
    }


def _events(content: bytes) -> Iterator[WorkerEvent]:
    for line in content.splitlines():
        try:
            yield WorkerEvent.model_validate_json(line)
        except ValidationError:
            continue
