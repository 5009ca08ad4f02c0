"""What follows from a worker's end: the run's next state, its result on record, the end of its key."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa

from trainer.database import Database
from trainer.runs import journal, protocol, records
from trainer.runs.housekeeping import Housekeeper
from trainer.runs.kind import Advance, Cause, Cut, Ending, Kind, Stage
from trainer.runs.notifier import Notifier
from trainer.runs.process import End
from trainer.runs.protocol import RunResult
from trainer.runs.state import Run, Status

MAX_KILLS: Final = 3
"""Consecutive restarts without progress, before a run is given up."""
BACK_OFF_S: Final = (0.0, 5.0, 30.0)
_LOG = logging.getLogger("hatrack.trainer.runs")
AnyKind = Kind[Any]


class Transitions:
    """Takes runs from a worker's end to their next state."""

    def __init__(self, database: Database, notifier: Notifier, housekeeper: Housekeeper) -> None:
        self._database = database
        self._notifier = notifier
        self._housekeeper = housekeeper

    async def revoke_key(self, kind: AnyKind, run_id: str) -> None:
        """Have a run's key revoked."""
        await self._housekeeper.revoke_key(kind.directories, run_id)

    async def count_device_time(self, kind: AnyKind, run_id: str) -> None:
        """A worker has given the device back, at its last sign: nobody may have been there to see its end."""
        sign = await asyncio.to_thread(kind.directories.last_sign, run_id, kind.signs)
        signed = min(time.time(), sign)

        def count(db: sa.Connection) -> None:
            run = records.get(db, run_id)
            if run.status is Status.RUNNING and signed > run.served_at:
                # a crash before the next state is on record comes here again, which must add nothing
                records.change(db, run_id, device_s=run.device_s + signed - run.served_at, served_at=signed)

        await self._database.run(count)

    async def finish(self, kind: AnyKind, run: Run, ending: Ending[Any]) -> None:
        """End a run for good: what it leaves is taken in, and its key is of no more use."""
        result: RunResult
        result, details = await kind.conclude(run, ending.result)
        try:
            await asyncio.to_thread(kind.directories.write, run.id, protocol.RESULT, result)
        except OSError:
            # the record is what counts: a run must not wait for room on the disk to be over
            _LOG.exception("the result of %s could not be written into its directory", run.id)

        def end(db: sa.Connection) -> None:
            current = records.get(db, run.id)
            if current.over:
                return
            if ending.message is not None:
                level = "error" if result.error is not None else ending.level
                current = journal.record_event(db, current, ending.message, level=level)
            records.change(
                db,
                run.id,
                status=Status(result.status),
                finished_at=int(time.time()),
                result=result.model_dump(mode="json"),
                estimated_finish=None,
                details=current.details | details,
            )

        await self._database.run(end)
        await self.revoke_key(kind, run.id)
        self._notifier.notify()

    async def cut_short(self, kind: AnyKind, run: Run, cut: Cut) -> None:
        """End a run whose worker left no result."""
        await self.finish(kind, run, await asyncio.to_thread(kind.cut_short, run, cut))

    async def advance(self, kind: AnyKind, run: Run, stage: Stage, working: Collection[int]) -> bool:
        """Put a run whose worker has ended a stage before the last into the next one's queue, or end it.

        Returns:
            False where the worker has left nothing.
        """
        outcome = await kind.stage_ended(run, stage, working)
        if outcome is None:
            return False
        if isinstance(outcome, Ending):
            await self.finish(kind, run, outcome)
            return True
        await self._database.run(lambda db: _advance(db, run.id, kind.stages[kind.stages.index(stage) + 1], outcome))
        self._notifier.notify()
        return True

    async def requeue(self, run: Run, stage: Stage, message: str | None) -> None:
        """Have a run that was told to stop go on at the next chance, before others."""

        def requeue(db: sa.Connection) -> None:
            current = records.change(db, run.id, status=stage.waits_as, interrupted=True, estimated_finish=None)
            if message is not None:
                journal.record_event(db, current, message)

        await self._database.run(requeue)

    async def killed(self, kind: AnyKind, run: Run, stage: Stage, end: End, *, for_memory: bool) -> None:
        """A worker died: it is started again, unless that has brought nothing several times in a row.

        Args:
            stage: What it was at.
            end: How it ended.
            for_memory: The kernel has killed some process for want of memory meanwhile.
        """
        progress = await asyncio.to_thread(kind.progress, run.id)
        kills = run.kills + 1 if progress == run.progress else 1
        how = f"The worker {'ran out of memory' if for_memory else describe_end(end)}"
        _LOG.warning("%s: %s, %d times in a row without progress", run.id, how, kills)
        if kills > MAX_KILLS:
            cut = Cut(Cause.GIVEN_UP, end, times=kills, for_memory=for_memory)
            await self.cut_short(kind, run, cut)
            return

        def requeue(db: sa.Connection) -> None:
            current = records.change(
                db,
                run.id,
                status=stage.waits_as,
                interrupted=True,
                estimated_finish=None,
                kills=kills,
                progress=progress,
                not_before=time.time() + BACK_OFF_S[kills - 1],
            )
            message = f"{how}; it goes on from {kind.restart_point(progress)}"
            journal.record_event(db, current, message, level="warn", restarts=kills)

        await self._database.run(requeue)
        self._notifier.notify()


def describe_end(end: End) -> str:
    """How a worker ended, in words that follow its name."""
    if end.code is None:
        return "was gone"
    if end.code < 0:
        return f"was killed ({signal.Signals(-end.code).name})"
    return f"ended with exit code {end.code}"


def _advance(db: sa.Connection, run_id: str, stage: Stage, outcome: Advance) -> None:
    current = records.get(db, run_id)
    for note in outcome.notes:
        current = journal.record_event(db, current, note)
    records.change(
        db,
        run_id,
        status=stage.waits_as,
        queued_at=time.time(),
        interrupted=False,
        kills=0,
        not_before=0.0,
        details=current.details | outcome.details,
    )
