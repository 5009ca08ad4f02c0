"""Evaluations as a kind of run: one stage, and a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from trainer.config import Installation
from trainer.errors import TooManyEvaluations
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.spec import ANSWER_BOOKS, EvaluationResult, Progress
from trainer.reviews.service import Reviews
from trainer.runs.directories import RunDirectories
from trainer.runs.failures import DISK_FULL
from trainer.runs.kind import Abort, AbortCause, Kind, RunOutcome, Stage
from trainer.runs.process import Command, WorkerExit
from trainer.runs.protocol import Failure
from trainer.runs.state import Run, Status

NAME: Final = "evaluation"
EVALUATE: Final = Stage(spec.EVALUATE, Status.QUEUED)
LARGE_FILES: Final = (spec.HELD_OUT, spec.TRAINING, spec.QUESTIONS, *ANSWER_BOOKS)
"""Not the report: that is what an evaluation is for."""


def worker_command(directory: Path, _stage: str) -> list[str]:
    """The command line of an evaluation's worker."""
    return [sys.executable, "-m", spec.WORKER, str(directory)]


def evaluation_directories(installation: Installation) -> RunDirectories:
    """Where evaluations are."""
    home = installation.directory
    return RunDirectories(home / "evaluations", home / "spent-evaluations", LARGE_FILES)


class EvaluationKind(Kind[EvaluationResult]):
    """Evaluations that somebody asked for.

    Args:
        reviews: Says how far a judge may be trusted, and takes in the pairs that are left for people.
    """

    name = NAME
    noun = display_name = "evaluation"
    param = "evaluation_id"
    too_many = TooManyEvaluations
    stages = (EVALUATE,)
    cancel_patience_s = 60.0
    result = EvaluationResult

    def __init__(self, directories: RunDirectories, reviews: Reviews, command: Command = worker_command) -> None:
        super().__init__(directories, command)
        self._reviews = reviews

    async def prepare(self, run: Run, stage: Stage) -> None:
        """See Kind: how far the judge may be trusted."""
        await self._reviews.prepare(run.project, run.body.get("judge"), self.directory(run))

    def progress(self, run_id: str) -> str:
        """See Kind."""
        directory = self.directories.path_of(run_id)
        there = [name for name in (spec.HELD_OUT, spec.PLAN, spec.KEPT) if (directory / name).exists()]
        books = (name for name in ANSWER_BOOKS if (directory / name).exists())
        return " ".join([*there, *(f"{name}:{(directory / name).stat().st_size}" for name in books)])

    def restart_point(self, progress: str) -> str:
        """See Kind."""
        return "the answers that it has" if progress else "the beginning"

    def abort_run(self, run: Run, abort: Abort) -> RunOutcome[EvaluationResult]:
        """See Kind."""
        if abort.cause is AbortCause.CANCELLED:
            return RunOutcome(EvaluationResult(status="cancelled"), "cancelled")
        failure = DISK_FULL if abort.cause is AbortCause.DISK_FULL else _given_up(abort.end, abort.times)
        return RunOutcome(EvaluationResult(status="failed", error=failure), failure.message)

    async def conclude(self, run: Run, result: EvaluationResult) -> tuple[EvaluationResult, dict[str, Any]]:
        """See Kind."""
        if result.status == "succeeded":
            await self._reviews.take(run.project, run.id, self.directory(run), run.adapters)
        return result, {}

    def worker_progress(self, run_id: str) -> Progress | None:
        """How far the worker says that it is."""
        return self.directories.read(run_id, spec.PROGRESS, Progress)


def _given_up(end: WorkerExit, times: int) -> Failure:
    how = "was gone" if end.code is None else f"ended with exit code {end.code}"
    message = (
        f"The worker {how}, {times} times in a row without getting any further. Its log in the evaluation's "
        "folder may say why; then ask for it anew."
    )
    return Failure(code="worker_killed", message=message)
