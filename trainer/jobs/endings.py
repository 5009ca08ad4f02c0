"""What follows from a worker's end: the job's next state, its result on record, its key's end.

However a job ends, its `seconds` are the time that its workers have had the device: each from its start to its last
sign, loading, judging and standing still for callers included. Its `cost` is that time by the device's price. What the
training alone took stands in the version's lineage.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa

from trainer.config import Installation, Settings
from trainer.jobs import fit, journal, records, spec
from trainer.jobs.database import Database
from trainer.jobs.failures import DISK_FULL
from trainer.jobs.gateway_side import GatewaySide, metrics_csv
from trainer.jobs.place import GROWING, JUDGING, Place, summary
from trainer.jobs.process import End
from trainer.jobs.pulse import Pulse
from trainer.jobs.spec import Failure, Plan, Result
from trainer.jobs.state import Job, Status
from trainer.reviews.service import Reviews

KILLS_MOST: Final = 3
"""Restarts in a row that brought nothing, before a job is given up."""
BACK_OFF_S: Final = (0.0, 5.0, 30.0)
CSV_NAME: Final = "step_metrics.csv"
SIGNS: Final = (spec.EVENTS, spec.CHECKPOINTS, spec.OUTPUT, spec.PUSHED, *GROWING, spec.RESULT)
"""What a worker that trains or judges writes to, again and again."""
_LOG = logging.getLogger("hatrack.trainer.jobs")


class Endings:
    """Takes jobs from a worker's end to their next state."""

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        base: fit.Base,
        database: Database,
        place: Place,
        pulse: Pulse,
        gateway: GatewaySide,
        reviews: Reviews | None = None,
    ) -> None:
        self._reviews = reviews
        self._settings = settings
        self._installation = installation
        self._base = base
        self._database = database
        self._place = place
        self._pulse = pulse
        self._gateway = gateway

    async def spend_key(self, job_id: str) -> None:
        """Have a job's key revoked."""
        await self._gateway.spend_key(job_id)

    async def prepare(self, job: Job) -> None:
        """Leave in a job's folder what its worker is to know: how far its judge may be trusted."""
        if self._reviews is not None:
            wanted = await asyncio.to_thread(self._place.read, job.id, spec.SPEC, spec.JobSpec)
            judge = None if wanted is None else wanted.judging.judge
            await self._reviews.prepare(job.project, judge, self._place.of(job.id))

    async def note_device_time(self, job_id: str) -> None:
        """A worker has given the device back, at its last sign: nobody may have been there to see its end."""
        signed = min(time.time(), await asyncio.to_thread(_last_sign, self._place.of(job_id)))

        def note(db: sa.Connection) -> None:
            job = records.get(db, job_id)
            if job.status is Status.RUNNING and signed > job.served_at:
                # a crash before the next state is on record comes here again, which must add nothing
                records.change(db, job_id, device_s=job.device_s + signed - job.served_at, served_at=signed)

        await self._database.run(note)

    async def finish(
        self, job: Job, result: Result, *, said: str | None = None, level: Literal["info", "error"] = "info"
    ) -> None:
        """End a job for good: its result files are kept at the gateway, and its key is of no more use.

        Args:
            said: The last event, where no worker has said one.
            level: Its level, where the job has not failed.
        """
        priced = self._settings.price_per_hour * job.device_s / 3600
        result = result.model_copy(update={"seconds": round(job.device_s, 3), "cost": round(priced, 6)})
        try:
            await asyncio.to_thread(self._place.write, job.id, spec.RESULT, result)
        except OSError:
            # the record is what counts: a job must not wait for room on the disk to be over
            _LOG.exception("the result of %s could not be written into its folder", job.id)
        if self._reviews is not None:
            await self._reviews.take(job.project, job.id, self._place.of(job.id))
        report = await asyncio.to_thread(self._place.report, job.id)
        found: dict[str, Any] = {"plan": _json(await asyncio.to_thread(self._place.plan, job.id))}
        found["report"] = summary(report) if report is not None else None
        if not job.result_files:
            kept = await self._keep(job, report.model_dump_json() if report is not None else None)
            found["result_files"] = [*kept, *result.files]

        def end(db: sa.Connection) -> None:
            if records.get(db, job.id).over:
                return
            if said is not None:
                journal.say(db, records.get(db, job.id), said, level="error" if result.error is not None else level)
            records.change(
                db,
                job.id,
                status=Status(result.status),
                finished_at=int(time.time()),
                result=result.model_dump(mode="json"),
                estimated_finish=None,
                **found,
            )

        await self._database.run(end)
        await self._gateway.spend_key(job.id)
        self._pulse.beat()

    async def disk_full(self, job: Job) -> None:
        """End a job that the disk has no more room for; one whose version is there has succeeded, unjudged."""
        pushed = await asyncio.to_thread(self._place.pushed, job.id)
        if pushed is None:
            await self.finish(job, Result(status="failed", error=DISK_FULL), said=DISK_FULL.message)
        else:
            message = f"The trainer's disk is full: {pushed.fine_tuned_model} is there, and no verdict could be kept."
            await self.finish(job, pushed, said=message, level="error")

    async def cancelled(self, job: Job) -> None:
        """End a job that was cancelled and has no worker; one whose version is there has succeeded, unjudged."""
        pushed = await asyncio.to_thread(self._place.pushed, job.id)
        if pushed is None:
            await self.finish(job, Result(status="cancelled"), said="cancelled")
        else:
            await self.finish(job, pushed, said="cancelled before it was judged; nothing was moved")

    async def _keep(self, job: Job, report: str | None) -> list[str]:
        rows = await self._database.run(lambda db: journal.metrics(db, job.id))
        files = {f"{job.id}-{CSV_NAME}": metrics_csv(rows)} if rows else {}
        if report is not None:
            files[f"{job.id}-{spec.REPORT}"] = report.encode()
        return await self._gateway.keep(job.id, files)

    async def validated(self, job: Job, working: Collection[int]) -> bool:
        """Put a job whose data were found good into the queue; False where the worker has left no plan.

        Now that the data are known the memory is looked at again: where it does not reach, activations are computed
        again in the backward pass; where that does not reach either, the job fails before it has cost anything.

        Args:
            job: Whose worker has ended.
            working: Process ids of the workers that train now.
        """
        plan = await asyncio.to_thread(self._place.plan, job.id)
        report = await asyncio.to_thread(self._place.report, job.id)
        if plan is None or report is None:
            return False
        longest = report.lengths.longest if report.lengths is not None else plan.recipe.max_length
        room = await asyncio.to_thread(fit.room, job.device, self._installation, working)
        on_gpu = fit.kind(job.device) == "cuda"
        fits = fit.Fit(fit.need(plan.recipe, self._base, longest=longest, on_gpu=on_gpu), room)
        notes = []
        if not fits.fits:
            plan = _recomputing(plan)
            notes.append(f"activations are computed again in the backward pass, about a third slower: {fits.words()}")
            fits = fit.Fit(fit.need(plan.recipe, self._base, longest=longest, on_gpu=on_gpu), room)
            if not fits.fits:
                message = f"The job cannot be done here: {fits.words()}. A smaller batch_size or max_length needs less."
                failure = Failure(code="insufficient_memory", message=message)
                await self.finish(job, Result(status="failed", error=failure), said=message)
                return True
            await asyncio.to_thread(self._place.write, job.id, spec.PLAN, plan)

        def queue(db: sa.Connection) -> None:
            current = records.get(db, job.id)
            for note in (*notes, "Files validated, moving job to queued state"):
                current = journal.say(db, current, note)
            records.change(
                db, job.id, status=Status.QUEUED, queued_at=time.time(), interrupted=False, kills=0,
                not_before=0.0, plan=_json(plan), report=summary(report),
            )  # fmt: skip

        await self._database.run(queue)
        self._pulse.beat()
        return True

    async def again(self, job: Job, status: Status, said: str | None) -> None:
        """Have a job that was told to stop go on at the next chance, before others."""

        def requeue(db: sa.Connection) -> None:
            current = records.change(db, job.id, status=status, interrupted=True, estimated_finish=None)
            if said is not None:
                journal.say(db, current, said)

        await self._database.run(requeue)

    async def killed(self, job: Job, status: Status, end: End, *, for_memory: bool) -> None:
        """A worker died of something: it is started again, unless that has brought nothing several times in a row.

        Args:
            job: Whose worker it was.
            status: Where the job waits to be started again.
            end: How the worker ended.
            for_memory: The kernel has killed some process for want of memory meanwhile.
        """
        progress = await asyncio.to_thread(self._place.progress, job.id)
        kills = job.kills + 1 if progress == job.progress else 1
        how = "The worker ran out of memory" if for_memory else f"The worker {_how(end)}"
        if kills > KILLS_MOST:
            await self._give_up(job, how, for_memory=for_memory)
            return
        wait_s = BACK_OFF_S[kills - 1]
        stand = progress.rpartition(" ")[2]
        whence = f"checkpoint {stand}" if stand.startswith("step-") else "the beginning"
        if stand.startswith(JUDGING):
            whence = "the answers that it has"

        def requeue(db: sa.Connection) -> None:
            current = records.change(
                db,
                job.id,
                status=status,
                interrupted=True,
                estimated_finish=None,
                kills=kills,
                progress=progress,
                not_before=time.time() + wait_s,
            )
            journal.say(db, current, f"{how}; it goes on from {whence}", level="warn", restarts=kills)

        await self._database.run(requeue)
        self._pulse.beat()

    async def _give_up(self, job: Job, how: str, *, for_memory: bool) -> None:
        times = f"{how}, {KILLS_MOST + 1} times in a row without getting any further"
        if for_memory:
            code, advice = "out_of_memory", "A smaller batch_size or max_length needs less memory."
        else:
            code, advice = "worker_killed", "The worker's log in the job's folder may say why; then start it anew."
        pushed = await asyncio.to_thread(self._place.pushed, job.id)
        if pushed is not None:
            message = f"{times}: {pushed.fine_tuned_model} is there, without a verdict. Nothing was moved."
            await self.finish(job, pushed, said=message, level="error")
            return
        failure = Failure(code=code, message=f"{times}. {advice}")
        await self.finish(job, Result(status="failed", error=failure), said=failure.message)


def _last_sign(folder: Path) -> float:
    """When the worker last wrote something, Unix seconds; 0 where it never did."""
    found = 0.0
    for name in SIGNS:
        try:
            found = max(found, (folder / name).stat().st_mtime)
        except OSError:
            continue
    return found


def _how(end: End) -> str:
    if end.code is None:
        return "was gone"
    if end.code < 0:
        return f"was killed ({signal.Signals(-end.code).name})"
    return f"ended with exit code {end.code}"


def _json(plan: Plan | None) -> dict[str, Any] | None:
    return plan.model_dump(mode="json") if plan is not None else None


def _recomputing(plan: Plan) -> Plan:
    return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"gradient_checkpointing": True})})
