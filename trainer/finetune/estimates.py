"""What a job will take, before it runs: by the trainer's record of past jobs on this base, else by a short run."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import sqlalchemy as sa

from adapters.protocol.costs import EstimatedJob
from adapters.protocol.runs import CreateJob
from trainer.config import Settings
from trainer.data.child_process import run_child, scratch_directory
from trainer.database import Database
from trainer.errors import TooManyRequests
from trainer.finetune import capacity, kind, spec
from trainer.finetune.kind import FinetuneKind
from trainer.finetune.objects import plan_object, recipe_hyperparameters
from trainer.finetune.service import Jobs
from trainer.finetune.spec import (
    ESTIMATE,
    EstimateOrders,
    JobDetails,
    JobResult,
    JobSpec,
    MeasuredPlan,
    PastSpeed,
)
from trainer.http import CurrentCaller
from trainer.installation import Installation
from trainer.runs import device_time, journal, protocol
from trainer.runs.state import Run, Status
from trainer.runs.tables import runs

MODULE: Final = "trainer.finetune.estimating"
MAX_JOBS: Final = 20
"""Past jobs that are looked at, the newest."""
MAX_WAITING: Final = 4
CHUNK_BYTES: Final = 2**20
FILES: Final = {"training_file": spec.TRAINING, "validation_file": spec.HELD_OUT}


class Upload(Protocol):
    """A file of a form."""

    async def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""


@dataclass(frozen=True, slots=True)
class PastJob:
    """What a past job tells: its speed, and the seconds around its training and its judging."""

    speed: PastSpeed
    around_s: float
    judging_s: float
    held_out: int


class JobEstimates:
    """Estimates jobs, one at a time.

    Args:
        jobs: Checks a request as for a job.
        finetune: Reads past jobs' directories.
    """

    def __init__(
        self, jobs: Jobs, finetune: FinetuneKind, database: Database, settings: Settings, installation: Installation
    ) -> None:
        self._jobs = jobs
        self._finetune = finetune
        self._database = database
        self._settings = settings
        self._installation = installation
        self._slot = asyncio.Semaphore(1)
        self._pending = 0

    async def estimate(self, caller: CurrentCaller, sent: CreateJob, files: Mapping[str, Upload]) -> EstimatedJob:
        """What the job would take. Nothing is kept.

        Args:
            files: The content of the request's files, by its fields.

        Raises:
            InvalidField, UnsupportedValue, MemoryTooSmall …: As for a job, and for its data.
            TooManyRequests: MAX_WAITING estimates are running or waiting.
            DataCheckTimeout: It took longer than a data check may take.
            DiskFull: The files do not fit.
        """
        job = await self._jobs.planned(caller, sent.request, sent.context)
        if self._pending >= MAX_WAITING:
            raise TooManyRequests(f"{MAX_WAITING} estimates are running or waiting, the maximum", retry_after_s=30)
        self._pending += 1
        try:
            with scratch_directory(self._installation.directory) as directory:
                for param, file in files.items():
                    await _write(directory / FILES[param], file)
                async with self._slot:
                    past = await self._past_jobs(job)
                    orders = EstimateOrders(
                        record=tuple(each.speed for each in past), parent_shape=sent.context.parent_shape
                    )
                    await asyncio.to_thread(_write_orders, directory, job, orders)
                    return _estimate(job, await self._run(directory), past, self._settings)
        finally:
            self._pending -= 1

    async def _past_jobs(self, job: JobSpec) -> list[PastJob]:
        """The newest jobs of the job's method on its base and device that made a version."""

        def read(db: sa.Connection) -> list[tuple[Run, float, tuple[float, float]]]:
            query = sa.select(runs).where(runs.c.kind == kind.NAME, runs.c.status == Status.SUCCEEDED)
            found = []
            for row in db.execute(query.order_by(runs.c.number.desc()).limit(MAX_JOBS)):
                run = Run.of(row)
                steps = journal.metrics(db, run.id)
                pace = float(steps[-1].get("tokens_per_s") or 0.0) if steps else 0.0
                if pace > 0:
                    found.append((run, pace, device_time.of_run(db, run.id)))
            return found

        rows = await self._database.run(read)
        return await asyncio.to_thread(self._alike, job, rows)

    def _alike(self, job: JobSpec, rows: Sequence[tuple[Run, float, tuple[float, float]]]) -> list[PastJob]:
        alike = []
        for run, pace, (training_s, judging_s) in rows:
            theirs = self._finetune.directories.read(run.id, protocol.SPEC, JobSpec)
            pushed = self._finetune.directories.read(run.id, spec.PUSHED, JobResult)
            details = JobDetails.model_validate(run.details)
            if theirs is None or pushed is None or details.plan is None:
                continue
            own = (job.base_name, job.method, capacity.device_type(job.device))
            if (theirs.base_name, theirs.method, pushed.device.partition(":")[0]) != own:
                continue
            held_out = int(((details.report or {}).get("held_out") or {}).get("examples") or 0)
            alike.append(
                PastJob(
                    speed=PastSpeed(tokens_per_s=pace, quantization=details.plan.recipe.quantization),
                    around_s=max(0.0, training_s - pushed.seconds),
                    judging_s=judging_s,
                    held_out=min(held_out, theirs.judging.most_examples),
                )
            )
        return alike

    async def _run(self, directory: Path) -> MeasuredPlan:
        command = (sys.executable, "-m", MODULE, str(directory))
        limit_s = self._settings.check_timeout_s
        output = await run_child(command, name="estimate", param="training_file", timeout_s=limit_s)
        return MeasuredPlan.model_validate_json(output)


def _estimate(job: JobSpec, measured: MeasuredPlan, past: Sequence[PastJob], settings: Settings) -> EstimatedJob:
    plan = measured.plan
    tokens = plan.recipe.epochs * plan.tokens_an_epoch
    judged = [each.judging_s / each.held_out for each in past if each.judging_s and each.held_out]
    asked = min(measured.held_out, settings.evaluate_max)
    return EstimatedJob(
        examples=measured.examples,
        held_out=measured.held_out,
        epochs=plan.recipe.epochs,
        trained_tokens=tokens,
        tokens_per_s=measured.tokens_per_s,
        speed_source="record" if measured.jobs else "short_run",
        jobs=measured.jobs,
        device=measured.device,
        starting_s=statistics.median([each.around_s for each in past]) if measured.jobs else measured.preparing_s,
        training_s=tokens / measured.tokens_per_s,
        judging_s=statistics.median(judged) * asked if judged else None,
        hyperparameters=recipe_hyperparameters(plan, job.wish.learning_rate_multiplier),
        plan=plan_object(plan),
    )


async def _write(path: Path, file: Upload) -> None:
    with path.open("wb") as target:
        while chunk := await file.read(CHUNK_BYTES):
            await asyncio.to_thread(target.write, chunk)


def _write_orders(directory: Path, job: JobSpec, orders: EstimateOrders) -> None:
    (directory / protocol.SPEC).write_text(job.model_dump_json())
    (directory / ESTIMATE).write_text(orders.model_dump_json())
