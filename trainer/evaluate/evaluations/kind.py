"""Evaluations as a kind of run: one stage that ends with a report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from adapters.protocol.reports import EvaluationProgress
from trainer.errors import TooManyEvaluations
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.look_store import LookStore
from trainer.evaluate.evaluations.spec import ANSWER_FILES, REVALIDATION, EvaluationDetails, EvaluationResult
from trainer.installation import Installation
from trainer.reviews.service import Reviews
from trainer.runs.activity import Activity
from trainer.runs.directories import RunDirectories
from trainer.runs.kind import Abort, Kind, RunOutcome, Stage, abort_without_output
from trainer.runs.process import Command, describe_exit
from trainer.runs.state import Run, Status

NAME: Final = "evaluation"
EVALUATE: Final = Stage(spec.EVALUATE, Status.QUEUED)
LARGE_FILES: Final = (spec.HELD_OUT, spec.TRAINING, spec.QUESTIONS, *ANSWER_FILES)
"""Files that may be deleted after the run. The report stays."""


def worker_command(directory: Path, _stage: str) -> list[str]:
    """The command line of an evaluation's worker."""
    return [sys.executable, "-m", spec.WORKER, str(directory)]


def evaluation_directories(installation: Installation) -> RunDirectories:
    """The directories of evaluations."""
    home = installation.directory
    return RunDirectories(home / "evaluations", home / "spent-evaluations", LARGE_FILES, installation)


class EvaluationKind(Kind[EvaluationResult]):
    """Evaluations on demand.

    Args:
        directories: The run directories.
        reviews: Provides how far people agree with a judge, and collects the pairs to review.
        looks: Imports the looks that a worker of an earlier release has left.
        command: Returns a worker's command line.
    """

    name = NAME
    id_prefix = "eval"
    noun = display_name = "evaluation"
    param = "evaluation_id"
    too_many = TooManyEvaluations
    stages = (EVALUATE,)
    cancel_patience_s = 60.0
    result = EvaluationResult

    def __init__(
        self, directories: RunDirectories, reviews: Reviews, looks: LookStore, command: Command = worker_command
    ) -> None:
        super().__init__(directories, command)
        self._reviews = reviews
        self._looks = looks

    async def prepare(self, run: Run, stage: Stage) -> None:
        """See Kind. Writes the judge's agreement with people into the run directory."""
        await self._reviews.prepare(run.project, run.body.get("judge"), self.directory(run))

    def progress(self, run_id: str) -> str:
        """See Kind."""
        directory = self.directories.path_of(run_id)
        present = [name for name in (spec.HELD_OUT, spec.PLAN, spec.UPLOADED_FILES) if (directory / name).exists()]
        answer_files = (name for name in ANSWER_FILES if (directory / name).exists())
        return " ".join([*present, *(f"{name}:{(directory / name).stat().st_size}" for name in answer_files)])

    def restart_point(self, progress: str) -> str:
        """See Kind."""
        return "the answers that it has" if progress else "the beginning"

    def abort_run(self, run: Run, abort: Abort) -> RunOutcome[EvaluationResult]:
        """See Kind."""
        given_up = (
            f"The worker {describe_exit(abort.end)}, {abort.times} times in a row without progress. Check its log in "
            "the evaluation's directory, then create the evaluation again."
        )
        return abort_without_output(EvaluationResult, abort, cancelled="cancelled", given_up=given_up)

    async def conclude(self, run: Run, result: EvaluationResult) -> tuple[EvaluationResult, dict[str, Any]]:
        """See Kind."""
        await self._looks.import_file(run.project, run.id, self.directory(run))
        if result.status == "succeeded":
            await self._reviews.take(run.ownership, run.id, self.directory(run))
        return result, {}

    def activity(self, run: Run, told: Activity) -> Activity:
        """See Kind: its progress is in a file, which says nothing of the pace."""
        progress = self.worker_progress(run.id)
        if progress is None:
            return told
        return replace(told, stage=progress.stage, done=progress.done, total=progress.total)

    def ending(self, run: Run, result: EvaluationResult) -> tuple[str, dict[str, Any]]:
        """See Kind. A revalidation also tells whether the earlier verdict holds; None if that is not shown."""
        arms = EvaluationDetails.model_validate(run.details).arms
        fields = {
            "adapters": list(run.adapters),
            "version": next((arm["model"] for arm in arms if arm["role"] == "candidate"), None),
            "verdict": result.verdict,
            "live": result.live,
        }
        if run.body.get("kind") == REVALIDATION:
            return REVALIDATION, fields | {"holds": result.holds}
        return self.noun, fields

    def worker_progress(self, run_id: str) -> EvaluationProgress | None:
        """The worker's last progress report; None before the first one."""
        return self.directories.read(run_id, spec.PROGRESS, EvaluationProgress)
