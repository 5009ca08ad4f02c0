"""The evaluations' folders as the trainer uses them; ``trainer.evaluations.spec`` says what is in one."""

from __future__ import annotations

from typing import Final

from trainer.evaluations.spec import (
    JUDGEMENTS,
    PAGE,
    PROGRESS,
    QUESTIONS,
    REPORT,
    SUITE_ANSWERS,
    EvaluationJob,
    EvaluationResult,
    Progress,
)
from trainer.jobs import spec
from trainer.jobs.folders import Folders
from trainer.jobs.place import LOG, OLD_LOG

GROWING: Final = (spec.ANSWERS, spec.SCORES, SUITE_ANSWERS, JUDGEMENTS)
BIG_FILES: Final = (spec.HELD_OUT, spec.TRAINING, QUESTIONS, *GROWING, LOG, OLD_LOG)
"""Not the report: that is what an evaluation is for."""


class EvaluationPlace(Folders):
    """The folders of all evaluations. Every method is quick, and blocks."""

    def make(self, job: EvaluationJob, key: str) -> None:
        """Make an evaluation's folder, whole or not at all. Raises OSError."""
        self.make_folder(job.id, job, key)

    def result(self, evaluation_id: str) -> EvaluationResult | None:
        """How the worker says that it ended."""
        return self.read(evaluation_id, spec.RESULT, EvaluationResult)

    def progress(self, evaluation_id: str) -> Progress | None:
        """How far the worker says that it is."""
        return self.read(evaluation_id, PROGRESS, Progress)

    def reached(self, evaluation_id: str) -> str:
        """A word that changes with everything that a worker has brought to an end: what a crash does not undo."""
        folder = self.of(evaluation_id)
        there = [name for name in (spec.HELD_OUT, spec.PLAN, spec.KEPT) if (folder / name).exists()]
        sizes = [f"{name}:{(folder / name).stat().st_size}" for name in GROWING if (folder / name).exists()]
        return " ".join([*there, *sizes])

    def report(self, evaluation_id: str) -> bytes | None:
        """The report as JSON."""
        return self._content(evaluation_id, REPORT)

    def page(self, evaluation_id: str) -> bytes | None:
        """The report as a page."""
        return self._content(evaluation_id, PAGE)

    def clear(self, job_id: str) -> None:
        """Delete what is big: the data, what was asked, and what was answered."""
        for name in BIG_FILES:
            (self.of(job_id) / name).unlink(missing_ok=True)

    def _content(self, evaluation_id: str, name: str) -> bytes | None:
        try:
            return (self.of(evaluation_id) / name).read_bytes()
        except FileNotFoundError:
            return None
