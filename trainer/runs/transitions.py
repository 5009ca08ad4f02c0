"""State transitions after a worker's exit: the next status, the recorded result, the revoked key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa

from trainer.database import Database
from trainer.runs import device_time, journal, protocol, records
from trainer.runs.children import Children
from trainer.runs.failures import is_full
from trainer.runs.housekeeping import Housekeeper
from trainer.runs.kind import Abort, AbortCause, Advance, AnyKind, RunOutcome, Stage, Wait
from trainer.runs.notifier import Notifier
from trainer.runs.process import WorkerExit, describe_exit
from trainer.runs.protocol import FAILED, Control, RunResult
from trainer.runs.state import Run, Status
from trainer.webhook import outbox
from trainer.webhook.sender import WebhookSender

MAX_KILLS: Final = 3
"""Consecutive restarts without progress before a run is given up."""
BACK_OFF_S: Final = (0.0, 5.0, 30.0)
_LOG = logging.getLogger("hatrack.trainer.runs")


class Transitions:
    """Moves runs to their next state after a worker's exit."""

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        housekeeper: Housekeeper,
        children: Children,
        webhook: WebhookSender,
    ) -> None:
        self._webhook = webhook
        self._database = database
        self._notifier = notifier
        self._housekeeper = housekeeper
        self._children = children

    async def revoke_key(self, kind: AnyKind, run_id: str) -> None:
        """Have a run's key revoked."""
        await self._housekeeper.revoke_key(kind.directories, run_id)

    async def count_device_time(self, kind: AnyKind, run_id: str) -> None:
        """Add the device time of an exited worker, up to its last heartbeat, as its exit may have gone unnoticed."""
        heartbeat = await asyncio.to_thread(kind.directories.last_heartbeat, run_id, kind.heartbeat_files)
        until = min(time.time(), heartbeat)
        judging_since = await asyncio.to_thread(kind.judging_since, run_id)

        def count(db: sa.Connection) -> None:
            run = records.get(db, run_id)
            if run.status is Status.RUNNING and until > run.served_at:
                # after a crash before the next state is recorded this runs again and must add nothing
                device_time.add(db, run_id, run.served_at, until, judging_since)
                records.change(db, run_id, device_s=run.device_s + until - run.served_at, served_at=until)

        await self._database.run(count)

    async def finish(self, kind: AnyKind, run: Run, outcome: RunOutcome[Any]) -> None:
        """End a run for good: conclude it, record its result, and revoke its key."""
        result: RunResult
        result, details = await kind.conclude(run, outcome.result)
        try:
            await asyncio.to_thread(kind.directories.write, run.id, protocol.RESULT, result)
        except OSError:
            # the database record is authoritative: a full disk must not keep a run from ending
            _LOG.exception("could not write the result of %s into its directory", run.id)

        def end(db: sa.Connection) -> None:
            current = records.get(db, run.id)
            if current.over:
                return
            if outcome.message is not None:
                level = "error" if result.error is not None else outcome.level
                current = journal.record_event(db, current, outcome.message, level=level)
            ended = records.change(
                db,
                run.id,
                status=Status(result.status),
                finished_at=int(time.time()),
                result=result.model_dump(mode="json"),
                estimated_finish=None,
                details=current.details | details,
            )
            if self._webhook.wanted and ended.parent is None:
                outbox.add(db, *_ending(kind, ended, result))

        await self._database.run(end)
        self._webhook.wake()
        await self.revoke_key(kind, run.id)
        self._notifier.notify()

    async def abort_run(self, kind: AnyKind, run: Run, abort: Abort) -> None:
        """End a run whose worker left no result."""
        await self.finish(kind, run, await asyncio.to_thread(kind.abort_run, run, abort))

    async def advance(self, kind: AnyKind, run: Run, stage: Stage, working: Collection[int]) -> bool:
        """Move a run whose worker finished a stage other than the last into the next queue, have it wait for child
        runs, or end it.

        Returns:
            False if the worker left no output.
        """
        outcome = await kind.stage_ended(run, stage, working)
        if outcome is None:
            return False
        await self._follow(kind, run, kind.stages[kind.stages.index(stage) + 1], outcome)
        return True

    async def resume_parent(self, kind: AnyKind, run: Run) -> None:
        """Continue a run that waits, if all its child runs have ended and it is not paused.

        What fails is tried again after a back-off, and given up after MAX_KILLS attempts.
        """
        children = await self._database.run(lambda db: records.children(db, run.id))
        if run.status is not Status.WAITING or not all(child.over for child in children):
            return
        if run.wanted is Control.CANCEL:
            await self.abort_run(kind, run, Abort(AbortCause.CANCELLED))
        elif run.wanted is Control.RUN and run.not_before <= time.time():
            try:
                outcome = await kind.children_ended(run, children)
                await self._follow(kind, run, kind.next_stage(_with_details(run, outcome)), outcome)
            except Exception as error:
                if isinstance(error, OSError) and is_full(error):
                    raise
                _LOG.exception("could not continue %s after its child runs", run.id)
                await self._retry_parent(kind, run)

    async def _retry_parent(self, kind: AnyKind, run: Run) -> None:
        if run.kills >= MAX_KILLS:
            await self.abort_run(kind, run, Abort(AbortCause.GIVEN_UP, WorkerExit(FAILED), times=run.kills + 1))
            return
        not_before = time.time() + BACK_OFF_S[run.kills]
        await self._database.run(lambda db: records.change(db, run.id, kills=run.kills + 1, not_before=not_before))

    async def _follow(self, kind: AnyKind, run: Run, stage: Stage, outcome: Advance | Wait | RunOutcome[Any]) -> None:
        """Do what follows a stage or child runs; ``stage`` is the next one."""
        if isinstance(outcome, RunOutcome):
            await self.finish(kind, run, outcome)
        elif isinstance(outcome, Wait):
            await self._children.start(kind, run, outcome)
        else:
            await self._database.run(lambda db: _advance(db, run.id, stage, outcome))
        self._notifier.notify()

    async def requeue(self, run: Run, stage: Stage, message: str | None) -> None:
        """Put an interrupted run back at the head of its queue."""

        def requeue(db: sa.Connection) -> None:
            current = records.change(db, run.id, status=stage.waits_as, interrupted=True, estimated_finish=None)
            if message is not None:
                journal.record_event(db, current, message)

        await self._database.run(requeue)

    async def killed(self, kind: AnyKind, run: Run, stage: Stage, end: WorkerExit, *, out_of_memory: bool) -> None:
        """Requeue a run whose worker died, with a back-off; give it up after MAX_KILLS deaths without progress.

        Args:
            stage: The worker's stage.
            end: How it exited.
            out_of_memory: Whether the kernel killed a process for lack of memory meanwhile.
        """
        progress = await asyncio.to_thread(kind.progress, run.id)
        kills = run.kills + 1 if progress == run.progress else 1
        how = f"The worker {'ran out of memory' if out_of_memory else describe_exit(end)}"
        _LOG.warning("%s: %s, %d times in a row without progress", run.id, how, kills)
        if kills > MAX_KILLS:
            abort = Abort(AbortCause.GIVEN_UP, end, times=kills, out_of_memory=out_of_memory)
            await self.abort_run(kind, run, abort)
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
            message = f"{how}; resuming from {kind.restart_point(progress)}"
            journal.record_event(db, current, message, level="warn", restarts=kills)

        await self._database.run(requeue)
        self._notifier.notify()


def _with_details(run: Run, outcome: Advance | Wait | RunOutcome[Any]) -> Run:
    """The run as it will be recorded: its details say which stage is the next."""
    return replace(run, details=run.details | outcome.details) if isinstance(outcome, Advance) else run


def _ending(kind: AnyKind, run: Run, result: RunResult) -> tuple[str, dict[str, Any]]:
    """The type and the data of the webhook's event on a run that has ended."""
    what, fields = kind.ending(run, result)
    data = {
        "id": run.id,
        "project": run.project,
        "status": run.status.value,
        "finished_at": run.finished_at,
        "error": result.error.code if result.error is not None else None,
    }
    return f"{what}.{run.status.value}", data | fields


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
