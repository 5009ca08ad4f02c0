"""Fine-tuning jobs as a kind of run: two stages, metered device time, and versions that may outlive a failed job.

However a job ends, its `seconds` are the time for which its workers had the device, each from its start to its last
heartbeat, including loading, judging and pauses for live traffic. Its `cost` is that time multiplied by the device's
price. The time of the training alone is in the version's metadata.
"""

from __future__ import annotations

import asyncio
import csv
import io
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer.config import Settings
from trainer.data.report import Report
from trainer.database import Database
from trainer.errors import TooManyRequests
from trainer.evaluate.evaluations.look_store import LookStore
from trainer.evaluate.evaluations.spec import ANSWER_FILES, QUESTIONS
from trainer.finetune import capacity, spec
from trainer.finetune.spec import JobDetails, JobResult, JobSpec, TrainingPlan
from trainer.installation import BaseGone, Installation
from trainer.reviews.service import Reviews
from trainer.runs import device_time, journal, protocol
from trainer.runs.directories import RunDirectories
from trainer.runs.failures import DISK_FULL
from trainer.runs.housekeeping import Housekeeper
from trainer.runs.kind import Abort, AbortCause, Advance, Kind, RunOutcome, Stage
from trainer.runs.process import Command, describe_exit
from trainer.runs.protocol import Failure
from trainer.runs.state import Run, Status
from trainer.tune.recipe import Recipe

NAME: Final = "finetune"
VALIDATE: Final = Stage(spec.VALIDATE, Status.VALIDATING, "looked_at")
TRAIN: Final = Stage(spec.TRAIN, Status.QUEUED, on_device=True)
CANCEL_PATIENCE_S: Final = 300.0
JUDGING_PREFIX: Final = "judging-"
"""Prefix of the part of a progress token that stands for the judging."""
CSV_NAME: Final = "step_metrics.csv"
COLUMNS: Final = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "full_valid_loss",
    "valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
    "tokens_per_s": "tokens_per_s",
}
"""Columns of the result file (the first five are OpenAI's) and the fields of a `metrics` event that fill them."""
LARGE_FILES: Final = (
    *(spec.CHECKPOINTS, spec.OUTPUT, spec.PARENT),
    *(spec.TRAINING, spec.HELD_OUT, QUESTIONS, *ANSWER_FILES),
)
"""Without the reports, which stay available."""


def worker_command(directory: Path, stage: str) -> list[str]:
    """The command line of a job's worker."""
    return [sys.executable, "-m", spec.WORKER, str(directory), "--stage", stage]


def job_directories(installation: Installation) -> RunDirectories:
    """The directories of all jobs."""
    return RunDirectories(installation.directory / "jobs", installation.directory / "spent", LARGE_FILES, installation)


class FinetuneKind(Kind[JobResult]):
    """Fine-tuning jobs.

    Args:
        base: The base model that jobs train on.
        housekeeper: Uploads a job's result files.
        reviews: Provides the judge's agreement with people, and collects the pairs left for human review.
        looks: Imports the looks that a worker of an earlier release has left.
    """

    name = NAME
    id_prefix = "ftjob"
    noun, display_name, param = "job", "fine-tuning job", "fine_tuning_job_id"
    too_many = TooManyRequests
    stages = (VALIDATE, TRAIN)
    cancel_patience_s = CANCEL_PATIENCE_S
    heartbeat_files = (protocol.EVENTS, spec.CHECKPOINTS, spec.OUTPUT, spec.PUSHED, *ANSWER_FILES, protocol.RESULT)
    result = JobResult

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        bases: Mapping[str, capacity.BaseModelInfo],
        database: Database,
        directories: RunDirectories,
        housekeeper: Housekeeper,
        reviews: Reviews,
        looks: LookStore,
        command: Command = worker_command,
    ) -> None:
        super().__init__(directories, command)
        self._settings = settings
        self._installation = installation
        self._bases = bases
        self._database = database
        self._housekeeper = housekeeper
        self._reviews = reviews
        self._looks = looks

    def next_stage(self, run: Run) -> Stage:
        """See Kind."""
        return VALIDATE if JobDetails.model_validate(run.details).plan is None else TRAIN

    def created(self, run_id: str) -> str:
        """See Kind."""
        return f"Created fine-tuning job: {run_id}"

    async def prepare(self, run: Run, stage: Stage) -> None:
        """See Kind: writes how far the job's judge agrees with people."""
        if stage is TRAIN:
            job = await asyncio.to_thread(self.directories.read, run.id, protocol.SPEC, JobSpec)
            judge = None if job is None else job.judging.judge
            await self._reviews.prepare(run.project, judge, self.directory(run))

    def started(self, run: Run, stage: Stage) -> str | None:
        """See Kind."""
        if stage is VALIDATE:
            return None
        return "Fine-tuning job resumed" if run.device_s else "Fine-tuning job started"

    def progress(self, run_id: str) -> str:
        """See Kind."""
        directory = self.directories.path_of(run_id)
        steps = sorted(path.name for path in (directory / spec.CHECKPOINTS).glob("step-*"))
        durable = (spec.TRAINING, spec.HELD_OUT, spec.PLAN, spec.OUTPUT)
        existing = [name for name in durable if (directory / name).exists()]
        return " ".join([*existing, *steps[-1:], *_judging_progress(directory)])

    def restart_point(self, progress: str) -> str:
        """See Kind."""
        last = progress.rpartition(" ")[2]
        if last.startswith(JUDGING_PREFIX):
            return "the answers collected so far"
        return f"checkpoint {last}" if last.startswith("step-") else "the beginning"

    async def stage_ended(
        self, run: Run, stage: Stage, working: Collection[int]
    ) -> Advance | RunOutcome[JobResult] | None:
        """See Kind. With the data known, memory is checked again: if it does not suffice, micro-batches are made
        smaller, then gradient checkpointing is switched on; if that does not suffice either, the job fails before it
        has cost anything."""
        plan = await asyncio.to_thread(self._plan, run.id)
        report = await asyncio.to_thread(self.report, run.id)
        if plan is None or report is None:
            return None
        longest = report.lengths.longest if report.lengths is not None else plan.recipe.max_length
        device = JobDetails.model_validate(run.details).device
        available = await asyncio.to_thread(capacity.available_memory, device, self._installation, working)
        job = await asyncio.to_thread(self.directories.read, run.id, protocol.SPEC, JobSpec)
        base_name = self._installation.base_name if job is None else job.base_name
        base = self._bases.get(base_name)
        if base is None:
            return self.abort_run(run, Abort(AbortCause.BASE_GONE, message=BaseGone(base_name, self._bases).message))
        on_gpu = capacity.device_type(device) == "cuda"
        wanted = capacity.required_memory(plan.recipe, base, longest=longest, on_gpu=on_gpu)
        recipe, check = capacity.fit_memory(plan.recipe, base, available, longest=longest, on_gpu=on_gpu)
        if not check.fits:
            message = (
                f"The job does not fit into memory: {check.describe()}. Use a smaller max_length or lora_rank, or "
                "quantization nf4."
            )
            failure = Failure(code="insufficient_memory", message=message)
            return RunOutcome(JobResult(status="failed", error=failure), message)
        notes: list[str] = []
        if recipe != plan.recipe:
            notes.append(_describe_fit(plan.recipe, recipe, capacity.CapacityCheck(wanted, available).describe()))
            plan = plan.model_copy(update={"recipe": recipe, "chosen": plan.chosen | {"micro_batch_tokens": notes[0]}})
            await asyncio.to_thread(self.directories.write, run.id, spec.PLAN, plan)
        notes.append("Files validated, moving job to queued state")
        return Advance(tuple(notes), {"plan": plan.model_dump(mode="json"), "report": summary(report)})

    def abort_run(self, run: Run, abort: Abort) -> RunOutcome[JobResult]:
        """See Kind. A job whose version is registered has succeeded, without a verdict."""
        pushed = self.pushed(run.id)
        name = None if pushed is None else pushed.fine_tuned_model
        if abort.cause is AbortCause.CANCELLED:
            if pushed is None:
                return RunOutcome(JobResult(status="cancelled"), "cancelled")
            return RunOutcome(pushed, "cancelled before it was judged; `live` was not moved")
        if abort.cause is AbortCause.DISK_FULL:
            if pushed is None:
                return RunOutcome(JobResult(status="failed", error=DISK_FULL), DISK_FULL.message)
            return RunOutcome(
                pushed, f"The trainer's disk is full: {name} is registered, but no verdict could be stored.", "error"
            )
        if abort.cause is AbortCause.BASE_GONE:
            failure = Failure(code=BaseGone.code, message=abort.message)
            if pushed is None:
                return RunOutcome(JobResult(status="failed", error=failure), failure.message)
            return RunOutcome(pushed, f"{name} is registered, without a verdict. {failure.message}", "error")
        how = "ran out of memory" if abort.out_of_memory else describe_exit(abort.end)
        times = f"The worker {how}, {abort.times} times in a row without progress"
        if pushed is not None:
            return RunOutcome(
                pushed, f"{times}: {name} is registered, without a verdict. `live` was not moved.", "error"
            )
        if abort.out_of_memory:
            code, advice = "out_of_memory", "Use a smaller max_length or lora_rank."
        else:
            code, advice = "worker_killed", "See worker.log in the job's directory, then create the job again."
        failure = Failure(code=code, message=f"{times}. {advice}")
        return RunOutcome(JobResult(status="failed", error=failure), failure.message)

    async def conclude(self, run: Run, result: JobResult) -> tuple[JobResult, dict[str, Any]]:
        """See Kind: computes the cost from the device time, and uploads the result files."""
        result = await self._with_cost(run, result)
        details = JobDetails.model_validate(run.details)
        await self._looks.import_file(run.project, run.id, self.directory(run))
        await self._reviews.take(run.ownership, run.id, self.directory(run))
        report = await asyncio.to_thread(self.report, run.id)
        plan = await asyncio.to_thread(self._plan, run.id)
        updates: dict[str, Any] = {"plan": None if plan is None else plan.model_dump(mode="json")}
        updates["report"] = None if report is None else summary(report)
        if not details.result_files:
            file_ids = await self._upload_results(run, None if report is None else report.model_dump_json())
            updates["result_files"] = [*file_ids, *result.files]
        return result, updates

    async def _with_cost(self, run: Run, result: JobResult) -> JobResult:
        """The result with the job's device time, at today's prices."""
        prices = self._settings.prices
        cost = prices.device(run.device_s)
        trained, judged = await self._database.run(lambda db: device_time.of_run(db, run.id))
        return result.model_copy(
            update={
                "seconds": round(run.device_s, 3),
                "training_seconds": round(trained, 3),
                "judging_seconds": round(judged, 3),
                "cost": None if cost is None else round(cost, 6),
                "currency": prices.currency,
            }
        )

    async def _upload_results(self, run: Run, report: str | None) -> list[str]:
        rows = await self._database.run(lambda db: journal.metrics(db, run.id))
        files = {f"{run.id}-{CSV_NAME}": metrics_csv(rows)} if rows else {}
        if report is not None:
            files[f"{run.id}-{spec.REPORT}"] = report.encode()
        return await self._housekeeper.upload_results(self.directories, run.id, files)

    def ending(self, run: Run, result: JobResult) -> tuple[str, dict[str, Any]]:
        """See Kind. The type is that of OpenAI's webhooks."""
        judged = result.judged
        return "fine_tuning.job", {
            "adapter": JobDetails.model_validate(run.details).adapter,
            "version": result.fine_tuned_model,
            "verdict": judged.verdict if judged is not None else None,
            "live": judged.live if judged is not None else None,
        }

    def judging_since(self, run_id: str) -> float | None:
        """See Kind: since the version was registered."""
        try:
            return (self.directories.path_of(run_id) / spec.PUSHED).stat().st_mtime
        except OSError:
            return None

    def report(self, run_id: str) -> Report | None:
        """The quality report; None if there is none yet."""
        return self.directories.read(run_id, spec.REPORT, Report)

    def pushed(self, run_id: str) -> JobResult | None:
        """The result of a job from the registration of its version on; None before."""
        return self.directories.read(run_id, spec.PUSHED, JobResult)

    def _plan(self, run_id: str) -> TrainingPlan | None:
        return self.directories.read(run_id, spec.PLAN, TrainingPlan)


def _judging_progress(directory: Path) -> list[str]:
    """The judging's part of the progress token: the bytes of answers stored."""
    if not (directory / spec.PUSHED).exists():
        return []
    books = [directory / name for name in ANSWER_FILES if (directory / name).exists()]
    return [f"{JUDGING_PREFIX}{sum(book.stat().st_size for book in books)}"]


def _describe_fit(wanted: Recipe, fitted: Recipe, why: str) -> str:
    """What was changed to save memory, for an event."""
    parts = []
    if fitted.micro_batch_tokens != wanted.micro_batch_tokens:
        parts.append(f"micro-batches have at most {fitted.micro_batch_tokens} tokens, or one example")
    if fitted.gradient_checkpointing and not wanted.gradient_checkpointing:
        parts.append("gradient checkpointing is on, which is about a third slower")
    return f"{'; '.join(parts)}: as first planned, {why}"


def metrics_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """A job's metrics as CSV, one line per step."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([row.get(field, "") for field in COLUMNS.values()] for row in rows)
    return text.getvalue().encode()


def summary(report: Report) -> dict[str, Any]:
    """The summary of a quality report that a job object shows."""
    return {
        "format": report.format,
        "examples": report.examples,
        "trained_on": report.trained_on,
        "dropped": report.dropped,
        "shortened": report.shortened,
        "validation": 0 if report.validation is None else report.validation.examples,
        "held_out": {"examples": report.held_out.examples, "source": report.held_out.source},
        "findings": [
            {"code": finding.code, "severity": finding.severity, "count": finding.count} for finding in report.findings
        ],
        "size": report.size,
    }
