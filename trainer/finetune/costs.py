"""What the trainer knows about costs: the device time of its jobs and the charges of endpoints outside, by hour, and
the last training of an adapter."""

from __future__ import annotations

import asyncio
import time

import sqlalchemy as sa

from adapters.errors import AdapterError
from adapters.names import Reference, parse_reference
from adapters.protocol.costs import DeviceTimes, EndpointCharge, LastTraining, RunTime
from trainer.database import Database
from trainer.finetune import kind
from trainer.finetune.kind import FinetuneKind
from trainer.finetune.spec import JobDetails, JobResult
from trainer.runs import device_time, outside
from trainer.runs.device_time import DeviceTime
from trainer.runs.outside import ChargedHour
from trainer.runs.state import Run, Status
from trainer.runs.tables import runs


class JobCosts:
    """The device time of jobs, and what endpoints outside charge for runs of any kind and for keys.

    Evaluations and ladders have no device time of their own, as the engine works for them.

    Args:
        finetune: Knows since when a job's worker has judged.
    """

    def __init__(self, finetune: FinetuneKind, database: Database) -> None:
        self._finetune = finetune
        self._database = database

    async def device_times(self, start: int, end: int) -> DeviceTimes:
        """Of all projects in the hours from ``start`` to ``end``; a running worker counts up to now."""

        def read(db: sa.Connection) -> tuple[list[DeviceTime], list[Run], list[ChargedHour]]:
            workers = device_time.under_way(db, (kind.NAME,))
            return device_time.recorded(db, start, end), workers, outside.recorded(db, start, end)

        recorded, workers, charged = await self._database.run(read)
        judging = {run.id: await asyncio.to_thread(self._finetune.judging_since, run.id) for run in workers}
        now = device_time.so_far(workers, judging, start, end, time.time())
        return DeviceTimes(data=tuple(map(_run_time, [*recorded, *now])), charges=tuple(map(_charge, charged)))

    async def last_training(self, project: str, adapter: str) -> LastTraining | None:
        """The adapter's last job that made a version of all its examples; None if there is none."""

        def read(db: sa.Connection) -> tuple[Run, tuple[float, float]] | None:
            row = db.execute(
                sa.select(runs)
                .where(
                    runs.c.kind == kind.NAME,
                    runs.c.project == project,
                    runs.c.status == Status.SUCCEEDED,
                    runs.c.details["adapter"].as_string() == adapter,
                    sa.not_(sa.func.coalesce(runs.c.details["for_curve"].as_boolean(), sa.false())),
                )
                .order_by(runs.c.number.desc())
                .limit(1)
            ).first()
            return None if row is None else (run := Run.of(row), device_time.of_run(db, run.id))

        found = await self._database.run(read)
        if found is None:
            return None
        run, (trained, judged) = found
        result = JobResult.model_validate(run.result)
        report = JobDetails.model_validate(run.details).report or {}
        return LastTraining(
            run=run.id,
            run_key_id=run.run_key_id if run.parent is None else None,
            version=_version(run),
            finished_at=run.finished_at or 0,
            training_s=trained,
            judging_s=judged,
            examples=int(report.get("trained_on") or 0),
            trained_tokens=result.trained_tokens,
        )


def _run_time(spent: DeviceTime) -> RunTime:
    run = spent.run
    return RunTime(
        run=run.id,
        project=run.project,
        key_id=run.key_id,
        adapter=str(run.details["adapter"]),
        version=_version(run),
        hour=spent.hour,
        training_s=spent.training_s,
        judging_s=spent.judging_s,
    )


def _charge(charged: ChargedHour) -> EndpointCharge:
    run = charged.run
    adapter, version = ("", None) if run is None else _subject(run)
    return EndpointCharge(
        run=None if run is None else run.id,
        project=charged.payer.project,
        key_id=charged.payer.key_id,
        adapter=adapter,
        version=version,
        endpoint=charged.endpoint,
        hour=charged.hour,
        requests=charged.requests,
        prompt_tokens=charged.prompt_tokens,
        completion_tokens=charged.completion_tokens,
        money=charged.money,
        unpriced=charged.unpriced,
    )


def _subject(run: Run) -> tuple[str, int | None]:
    """The adapter that a run is about, and its version: of a job what it makes, of an evaluation its candidate.

    A candidate at an endpoint outside is none of ours, whatever its model's name looks like.
    """
    if run.kind == kind.NAME:
        return str(run.details["adapter"]), _version(run)
    for arm in run.details.get("arms", ()):
        if arm.get("role") == "candidate" and arm.get("endpoint") is None and "@" in str(arm.get("model")):
            candidate = _reference(arm["model"])
            if candidate is not None:
                return candidate.name, candidate.version
    return next(iter(run.adapters), ""), None


def _version(run: Run) -> int | None:
    """The number of the version that a job has made; None as long as it has made none."""
    name = (run.result or {}).get("fine_tuned_model")
    made = None if name is None else _reference(name)
    return None if made is None else made.version


def _reference(text: object) -> Reference | None:
    """What a run's record names; None if it is no reference: one odd record must not hide what all others cost."""
    try:
        return parse_reference(str(text))
    except AdapterError:
        return None
