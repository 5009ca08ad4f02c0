"""The jobs' folders as the trainer uses them; ``trainer.jobs.spec`` says what is in one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from trainer.data.report import Report
from trainer.evaluations.spec import JUDGEMENTS, QUESTIONS, SUITE_ANSWERS
from trainer.jobs import spec
from trainer.jobs.folders import Folders
from trainer.jobs.spec import JobSpec, Plan, Result, WorkerEvent

LOG: Final = "worker.log"
OLD_LOG: Final = "worker.log.1"
PARENT: Final = "parent"
TAIL_BYTES: Final = 1024 * 1024
"""Most of events.jsonl that is read at once."""
LONGEST_LINE: Final = 256 * 1024
JUDGING: Final = "judging-"
"""How the word of `Place.progress` begins that stands for the judging."""
BIG: Final = (spec.CHECKPOINTS, spec.OUTPUT, PARENT)
GROWING: Final = (spec.ANSWERS, spec.SCORES, SUITE_ANSWERS, JUDGEMENTS)
BIG_FILES: Final = (spec.TRAINING, spec.HELD_OUT, QUESTIONS, *GROWING, LOG, OLD_LOG)
"""Not the reports, which are what a job is remembered by."""


class Place(Folders):
    """The folders of all jobs. Every method is quick, and blocks."""

    def make(self, job: JobSpec, key: str) -> None:
        """Make a job's folder, whole or not at all. Raises OSError."""
        self.make_folder(job.id, job, key)

    def spec(self, job_id: str) -> JobSpec | None:
        """What is to be done."""
        return self.read(job_id, spec.SPEC, JobSpec)

    def plan(self, job_id: str) -> Plan | None:
        """What is trained, once the data were looked at."""
        return self.read(job_id, spec.PLAN, Plan)

    def report(self, job_id: str) -> Report | None:
        """The quality report, as far as there is one."""
        return self.read(job_id, spec.REPORT, Report)

    def result(self, job_id: str) -> Result | None:
        """How the worker says that the job ended."""
        return self.read(job_id, spec.RESULT, Result)

    def pushed(self, job_id: str) -> Result | None:
        """The result of a job whose version is there, before it is judged."""
        return self.read(job_id, spec.PUSHED, Result)

    def progress(self, job_id: str) -> str:
        """A word that changes with everything that a worker has brought to an end: what a crash does not undo."""
        folder = self.of(job_id)
        steps = sorted(path.name for path in (folder / spec.CHECKPOINTS).glob("step-*"))
        there = [name for name in (spec.TRAINING, spec.HELD_OUT, spec.PLAN, spec.OUTPUT) if (folder / name).exists()]
        return " ".join([*there, *steps[-1:], *self._judging(folder)])

    def _judging(self, folder: Path) -> list[str]:
        """How far the judging is, in bytes of answers."""
        if not (folder / spec.PUSHED).exists():
            return []
        books = [folder / name for name in GROWING if (folder / name).exists()]
        return [f"{JUDGING}{sum(book.stat().st_size for book in books)}"]

    def tail(self, job_id: str, offset: int) -> tuple[list[WorkerEvent], int]:
        """The whole lines of events.jsonl from `offset` on, and where the next ones will begin.

        A line that is no event (a worker was killed in the middle of it) is left out; one that has no end yet is left
        for the next time. A file that is shorter than that (the machine lost power before the end was on the disk, and
        the record was not lost) is gone on with from its end.
        """
        try:
            with (self.of(job_id) / spec.EVENTS).open("rb") as file:
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

    def clear(self, job_id: str) -> None:
        """Delete what is big: data, checkpoints, the exported adapter, what was asked and answered, and the log."""
        folder = self.of(job_id)
        for name in BIG:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in BIG_FILES:
            (folder / name).unlink(missing_ok=True)
            (folder / f".{name}.partial").unlink(missing_ok=True)


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
