"""Fine-tuning jobs as a kind of run: two stages, a device whose time is counted, a version that may outlive its job.

However a job ends, its `seconds` are the time that its workers have had the device: each from its start to its last
sign, loading, judging and pauses for live traffic included. Its `cost` is that time by the device's price. What the
training alone took stands in the version's lineage.
"""

from __future__ import annotations

import asyncio
import csv
import io
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from trainer.config import Installation, Settings
from trainer.data.report import Report
from trainer.database import Database
from trainer.errors import TooMany
from trainer.evaluate.evaluations.spec import ANSWER_FILES, QUESTIONS
from trainer.finetune import capacity, spec
from trainer.finetune.spec import JobDetails, JobSpec, Plan, Result
from trainer.reviews.service import Reviews
from trainer.runs import journal, protocol
from trainer.runs.directories import RunDirectories
from trainer.runs.failures import DISK_FULL
from trainer.runs.housekeeping import Housekeeper
from trainer.runs.kind import Advance, Cause, Cut, Ending, Kind, Stage
from trainer.runs.process import Command
from trainer.runs.protocol import Failure
from trainer.runs.state import Run, Status
from trainer.runs.transitions import describe_end

NAME: Final = "finetune"
VALIDATE: Final = Stage(spec.VALIDATE, Status.VALIDATING, "looked_at")
TRAIN: Final = Stage(spec.TRAIN, Status.QUEUED, on_device=True)
CANCEL_PATIENCE_S: Final = 300.0
JUDGING: Final = "judging-"
"""How the part of a progress token begins that stands for the judging."""
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
"""Columns of the result file, the first five OpenAI's, and the fields of a `metrics` event that they come from."""
BIG: Final = (
    *(spec.CHECKPOINTS, spec.OUTPUT, spec.PARENT),
    *(spec.TRAINING, spec.HELD_OUT, QUESTIONS, *ANSWER_FILES),
)
"""Not the reports, which are what a job is remembered by."""


def worker_command(directory: Path, stage: str) -> list[str]:
    """The command line of a job's worker."""
    return [sys.executable, "-m", spec.WORKER, str(directory), "--stage", stage]


def job_directories(installation: Installation) -> RunDirectories:
    """Where jobs are."""
    return RunDirectories(installation.directory / "jobs", installation.directory / "spent", BIG)


class FinetuneKind(Kind[Result]):
    """Fine-tuning jobs.

    Args:
        base: What is trained on, as far as memory goes.
        housekeeper: Keeps a job's result files.
        reviews: Says how far a judge may be trusted, and takes in the pairs that are left for people.
    """

    name = NAME
    noun, described, param = "job", "fine-tuning job", "fine_tuning_job_id"
    too_many = TooMany
    stages = (VALIDATE, TRAIN)
    cancel_patience_s = CANCEL_PATIENCE_S
    signs = (protocol.EVENTS, spec.CHECKPOINTS, spec.OUTPUT, spec.PUSHED, *ANSWER_FILES, protocol.RESULT)
    result = Result

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        base: capacity.Base,
        database: Database,
        directories: RunDirectories,
        housekeeper: Housekeeper,
        reviews: Reviews,
        command: Command = worker_command,
    ) -> None:
        super().__init__(directories, command)
        self._settings = settings
        self._installation = installation
        self._base = base
        self._database = database
        self._housekeeper = housekeeper
        self._reviews = reviews

    def next_stage(self, run_id: str) -> Stage:
        """See Kind."""
        return TRAIN if self._plan(run_id) is not None else VALIDATE

    async def prepare(self, run: Run, stage: Stage) -> None:
        """See Kind: how far the job's judge may be trusted."""
        if stage is TRAIN:
            job = await asyncio.to_thread(self.directories.read, run.id, protocol.SPEC, JobSpec)
            judge = None if job is None else job.judging.judge
            await self._reviews.prepare(run.project, judge, self.directory(run))

    def started(self, run: Run, stage: Stage) -> str | None:
        """See Kind."""
        if stage is VALIDATE:
            return None
        return "Fine-tuning job goes on" if run.device_s else "Fine-tuning job started"

    def progress(self, run_id: str) -> str:
        """See Kind."""
        directory = self.directories.of(run_id)
        steps = sorted(path.name for path in (directory / spec.CHECKPOINTS).glob("step-*"))
        durable = (spec.TRAINING, spec.HELD_OUT, spec.PLAN, spec.OUTPUT)
        there = [name for name in durable if (directory / name).exists()]
        return " ".join([*there, *steps[-1:], *_judging_progress(directory)])

    def restart_point(self, progress: str) -> str:
        """See Kind."""
        last = progress.rpartition(" ")[2]
        if last.startswith(JUDGING):
            return "the answers that it has"
        return f"checkpoint {last}" if last.startswith("step-") else "the beginning"

    async def stage_ended(self, run: Run, stage: Stage, working: Collection[int]) -> Advance | Ending[Result] | None:
        """See Kind. Now that the data are known the memory is looked at again: where it does not reach, activations
        are computed again in the backward pass; where that does not reach either, the job fails before it has cost
        anything."""
        plan = await asyncio.to_thread(self._plan, run.id)
        report = await asyncio.to_thread(self.report, run.id)
        if plan is None or report is None:
            return None
        longest = report.lengths.longest if report.lengths is not None else plan.recipe.max_length
        device = JobDetails.model_validate(run.details).device
        room = await asyncio.to_thread(capacity.room, device, self._installation, working)
        fit = self._fit(plan, longest, device, room)
        notes: list[str] = []
        if not fit.fits:
            plan = _recomputing(plan)
            notes.append(f"activations are computed again in the backward pass, about a third slower: {fit.words()}")
            fit = self._fit(plan, longest, device, room)
            if not fit.fits:
                message = f"The job cannot be done here: {fit.words()}. A smaller batch_size or max_length needs less."
                failure = Failure(code="insufficient_memory", message=message)
                return Ending(Result(status="failed", error=failure), message)
            await asyncio.to_thread(self.directories.write, run.id, spec.PLAN, plan)
        notes.append("Files validated, moving job to queued state")
        return Advance(tuple(notes), {"plan": plan.model_dump(mode="json"), "report": summary(report)})

    def _fit(self, plan: Plan, longest: int, device: str, room: capacity.Room) -> capacity.Fit:
        on_gpu = capacity.kind(device) == "cuda"
        return capacity.Fit(capacity.need(plan.recipe, self._base, longest=longest, on_gpu=on_gpu), room)

    def cut_short(self, run: Run, cut: Cut) -> Ending[Result]:
        """See Kind. A job whose version is there has succeeded, unjudged."""
        pushed = self.pushed(run.id)
        name = None if pushed is None else pushed.fine_tuned_model
        if cut.cause is Cause.CANCELLED:
            if pushed is None:
                return Ending(Result(status="cancelled"), "cancelled")
            return Ending(pushed, "cancelled before it was judged; nothing was moved")
        if cut.cause is Cause.DISK_FULL:
            if pushed is None:
                return Ending(Result(status="failed", error=DISK_FULL), DISK_FULL.message)
            return Ending(
                pushed, f"The trainer's disk is full: {name} is there, and no verdict could be kept.", "error"
            )
        how = "ran out of memory" if cut.for_memory else describe_end(cut.end)
        times = f"The worker {how}, {cut.times} times in a row without getting any further"
        if pushed is not None:
            return Ending(pushed, f"{times}: {name} is there, without a verdict. Nothing was moved.", "error")
        if cut.for_memory:
            code, advice = "out_of_memory", "A smaller batch_size or max_length needs less memory."
        else:
            code, advice = "worker_killed", "The worker's log in the job's folder may say why; then start it anew."
        failure = Failure(code=code, message=f"{times}. {advice}")
        return Ending(Result(status="failed", error=failure), failure.message)

    async def conclude(self, run: Run, result: Result) -> tuple[Result, dict[str, Any]]:
        """See Kind: the result is priced by the device's time, and the result files are kept at the gateway."""
        priced = self._settings.price_per_hour * run.device_s / 3600
        result = result.model_copy(update={"seconds": round(run.device_s, 3), "cost": round(priced, 6)})
        details = JobDetails.model_validate(run.details)
        await self._reviews.take(run.project, run.id, self.directory(run), [details.adapter])
        report = await asyncio.to_thread(self.report, run.id)
        plan = await asyncio.to_thread(self._plan, run.id)
        changed: dict[str, Any] = {"plan": None if plan is None else plan.model_dump(mode="json")}
        changed["report"] = None if report is None else summary(report)
        if not details.result_files:
            kept = await self._keep(run, None if report is None else report.model_dump_json())
            changed["result_files"] = [*kept, *result.files]
        return result, changed

    async def _keep(self, run: Run, report: str | None) -> list[str]:
        rows = await self._database.run(lambda db: journal.metrics(db, run.id))
        files = {f"{run.id}-{CSV_NAME}": metrics_csv(rows)} if rows else {}
        if report is not None:
            files[f"{run.id}-{spec.REPORT}"] = report.encode()
        return await self._housekeeper.keep(self.directories, run.id, files)

    def report(self, run_id: str) -> Report | None:
        """The quality report, as far as there is one."""
        return self.directories.read(run_id, spec.REPORT, Report)

    def pushed(self, run_id: str) -> Result | None:
        """The result of a job whose version is there, before it is judged."""
        return self.directories.read(run_id, spec.PUSHED, Result)

    def _plan(self, run_id: str) -> Plan | None:
        return self.directories.read(run_id, spec.PLAN, Plan)


def _judging_progress(directory: Path) -> list[str]:
    """How far the judging is, in bytes of answers."""
    if not (directory / spec.PUSHED).exists():
        return []
    books = [directory / name for name in ANSWER_FILES if (directory / name).exists()]
    return [f"{JUDGING}{sum(book.stat().st_size for book in books)}"]


def _recomputing(plan: Plan) -> Plan:
    return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"gradient_checkpointing": True})})


def metrics_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """A job's numbers, a line a step."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([row.get(field, "") for field in COLUMNS.values()] for row in rows)
    return text.getvalue().encode()


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
