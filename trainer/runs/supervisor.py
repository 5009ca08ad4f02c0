"""Schedules runs, watches their workers, and handles every worker's exit. One worker per stage of a kind runs at a
time; other runs wait.

    validating_files ─▶ queued ─▶ running ─▶ succeeded | failed | cancelled
           ▲               ▲ └──── killed or stopped: resumes from its last durable step
           └─── paused ────┘
    Between two stages a run may be waiting: for child runs of its own, without a worker.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa

from trainer.config import Settings
from trainer.database import Database
from trainer.errors import SettingsError
from trainer.installation import BaseGone
from trainer.runs import journal, protocol, records
from trainer.runs.failures import is_full
from trainer.runs.kind import Abort, AbortCause, AnyKind, RunOutcome, Stage
from trainer.runs.notifier import Notifier
from trainer.runs.process import Adopted, Worker, WorkerExit, memory_kills, spawn
from trainer.runs.protocol import BUSY, DONE, FAILED, FULL, PAUSED, STOPPED, Control
from trainer.runs.state import UNDER_WAY, Run, Status
from trainer.runs.transitions import Transitions
from trainer.runs.waiting import WaitingLines

TICK_S: Final = 0.25
TURN_S: Final = 1.0
CHILD_PATIENCE_S: Final = 1.0
"""How long a child run's worker may take to exit when its parent has been cancelled, too: a step may take minutes, and
nobody will read what it leaves."""
T = TypeVar("T")
_LOG = logging.getLogger("hatrack.trainer.runs")


@dataclass(slots=True)
class Watch:
    """A worker that is watched.

    ``sent_control`` is the content of the run's control file, None if unknown; ``kills`` is `memory_kills` when the
    watch began.
    """

    kind: AnyKind
    run_id: str
    stage: Stage
    worker: Worker
    sent_control: Control | None
    kills: int
    cancelled_at: float | None = None


class Supervisor:
    """Runs the workers of all kinds.

    Args:
        kinds: In the order in which their queues are served.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        notifier: Notifier,
        transitions: Transitions,
        kinds: Sequence[AnyKind],
    ) -> None:
        self.lines = WaitingLines(database, self.stages)
        """What runs wait for."""
        self._settings = settings
        self._database = database
        self._notifier = notifier
        self._transitions = transitions
        self._kinds = {kind.name: kind for kind in kinds}
        self._watches: dict[str, Watch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._resuming: dict[str, asyncio.Task[None]] = {}
        """Of waiting runs, while it is looked whether they can go on."""
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False

    def working(self) -> list[int]:
        """Process ids of the workers that use the device now."""
        return [watch.worker.pid for watch in self._watches.values() if watch.stage.on_device]

    def stages(self) -> dict[str, Stage]:
        """The stage of every worker, by its run's id."""
        return {watch.run_id: watch.stage for watch in self._watches.values()}

    async def refuse_lost_database(self) -> None:
        """Raise SettingsError if the database has no run at all, but workers have left work in folders beside it.

        To be called before `start`, which removes the folders without a run. A crash leaves only those of runs that
        were not recorded yet, in which no worker has begun.
        """
        if await self._database.run(records.has_any):
            return
        for kind in self._kinds.values():
            worked_on = await asyncio.to_thread(kind.directories.worked_on)
            if worked_on:
                raise SettingsError(
                    f"the trainer's database knows no run, but {kind.directories.directory} has the folders of "
                    f"{len(worked_on)} ({worked_on[0]}, …): it was lost, or is another one. Nothing was changed. Stop "
                    "the gateway and restore the last backup into an empty HATRACK_HOME (deploy/BACKUP.md), or move "
                    "these folders away to begin without them"
                )

    async def start(self) -> None:
        """Adopt the workers that an earlier trainer left running, and start; the first turn handles the other runs."""
        for run in await self._database.run(lambda db: records.with_status(db, UNDER_WAY)):
            await self._adopt(run)
        for kind in self._kinds.values():
            await self._remove_orphans(kind)
        self._loop = asyncio.create_task(self._run(), name="runs")

    async def stop(self) -> None:
        """Have the workers checkpoint and exit, and wait up to `stop_s`; slower ones finish on their own."""
        self._stopping = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for watch in self._watches.values():
            watch.worker.signal(signal.SIGTERM)
        tasks = [*self._tasks.values(), *self._resuming.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.stop_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _adopt(self, run: Run) -> bool:
        """Watch the worker that another trainer started for this run; False if there is none."""
        kind = self._kinds[run.kind]
        pid = await asyncio.to_thread(kind.directories.worker, run.id)
        if pid is None:
            return False
        _LOG.info("adopted the worker of %s: process %d", run.id, pid)
        self._watch(kind, run, _stage_of(kind, run), Adopted(kind.directories, run.id, pid), sent_control=None)
        return True

    async def _recover(self, run: Run) -> None:
        """Handle a running run that is not watched: its worker may still run, or have exited unnoticed."""
        if not await self._adopt(run):
            kind = self._kinds[run.kind]
            while await self._ingest(kind, run.id):
                pass
            await self._worker_exited(kind, run.id, _stage_of(kind, run), WorkerExit(None), kills=memory_kills())

    async def _remove_orphans(self, kind: AnyKind) -> None:
        """Clean up after a crash: directories without a run, keys of finished runs."""
        known = await self._database.run(lambda db: records.over_by_id(db, kind.name))
        for run_id in await asyncio.to_thread(kind.directories.ids):
            if known.get(run_id, True):
                await self._transitions.revoke_key(kind, run_id)
            if run_id not in known:
                await asyncio.to_thread(kind.directories.discard, run_id)

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:
                _LOG.exception("a scheduling turn failed; trying again")
            await self._notifier.wait(TURN_S)

    async def _turn(self) -> None:
        for run in await self._database.run(lambda db: records.with_status(db, UNDER_WAY | {Status.PAUSED})):
            if self._is_due(run):
                try:
                    await self._apply_control(run.id)
                except Exception:
                    _LOG.exception("could not apply the requested state of %s", run.id)
        for kind in self._kinds.values():
            for stage in kind.stages:
                if not any(watch.kind is kind and watch.stage is stage for watch in self._watches.values()):
                    try:
                        await self._start_next(kind, stage)
                    except Exception:  # a run that cannot start must not block other stages and kinds
                        _LOG.exception("could not start a run of kind %s at stage %s", kind.name, stage.name)
            await self.lines.announce(kind)

    async def _start_next(self, kind: AnyKind, stage: Stage) -> None:
        take = partial(
            records.take_next, kind=kind.name, status=stage.waits_as, turn=stage.turn, exclude=[*self._watches]
        )
        run = await self._database.run(take)
        if run is not None:
            await self._begin(kind, run, stage)

    def _is_due(self, run: Run) -> bool:
        """Whether a run's requested state differs from what it does."""
        watch = self._watches.get(run.id)
        if watch is not None:
            return watch.sent_control is not run.wanted
        is_paused, should_pause = run.status is Status.PAUSED, run.wanted is Control.PAUSE
        unwatched = run.status in (Status.RUNNING, Status.WAITING)
        return unwatched or run.wanted is Control.CANCEL or is_paused is not should_pause

    async def _apply_control(self, run_id: str) -> None:
        """Apply a run's requested state: through its worker's control file, or directly if it has no worker."""
        run = await self._database.run(lambda db: records.get(db, run_id))
        kind, watch = self._kinds[run.kind], self._watches.get(run_id)
        if watch is not None:
            if watch.sent_control is not run.wanted:
                await asyncio.to_thread(kind.directories.set_control, run_id, run.wanted)
                watch.sent_control = run.wanted
                watch.cancelled_at = time.monotonic() if run.wanted is Control.CANCEL else None
        elif run.status is Status.RUNNING:
            await self._recover(run)
        elif run.status is Status.WAITING:
            # a task of its own: what follows may take long, and other runs must not wait for it
            if run_id not in self._resuming:
                self._resuming[run_id] = asyncio.create_task(self._resume_parent(kind, run_id), name=f"resume {run_id}")
        elif run.over:
            return  # its worker has exited meanwhile
        elif run.wanted is Control.CANCEL:
            await self._transitions.abort_run(kind, run, Abort(AbortCause.CANCELLED))
        elif run.wanted is Control.PAUSE and run.status is not Status.PAUSED:
            await self._move(kind, run, Status.PAUSED, "paused")
        elif run.wanted is Control.RUN and run.status is Status.PAUSED:
            await self._move(kind, run, kind.next_stage(run).waits_as, "resumed; waiting in the queue")

    async def _move(self, kind: AnyKind, run: Run, status: Status, message: str) -> None:
        await asyncio.to_thread(kind.directories.set_control, run.id, run.wanted)

        def move(db: sa.Connection) -> None:
            if records.get(db, run.id).wanted is run.wanted:
                moved = records.change(db, run.id, status=status, queued_at=time.time(), estimated_finish=None)
                journal.record_event(db, moved, message)

        await self._database.run(move)
        self._notifier.notify()

    async def _begin(self, kind: AnyKind, run: Run, stage: Stage) -> None:
        await self._ingest(kind, run.id)  # notices a truncated events file before it grows again
        try:
            await asyncio.to_thread(kind.directories.relocate, run.id)
            await asyncio.to_thread(kind.directories.set_control, run.id, Control.RUN)
            await kind.prepare(run, stage)
            # on this thread: in another one it could outlive a cancellation and leave an unwatched worker
            directory = kind.directory(run)
            worker = spawn(directory, kind.command(directory, stage.name))
        except BaseGone as error:
            await self._transitions.abort_run(kind, run, Abort(AbortCause.BASE_GONE, message=error.message))
            return
        except OSError as error:
            _LOG.exception("cannot start the worker of %s", run.id)
            end = WorkerExit(FULL if is_full(error) else FAILED)
            await self._worker_exited(kind, run.id, stage, end, kills=memory_kills())
            return
        self._watch(kind, run, stage, worker, sent_control=Control.RUN)
        started = kind.started(run, stage)
        if started is not None:
            await self._database.run(lambda db: journal.record_event(db, records.get(db, run.id), started))
        self._notifier.notify()

    async def _resume_parent(self, kind: AnyKind, run_id: str) -> None:
        try:
            run = await self._database.run(lambda db: records.get(db, run_id))
            await self._or_disk_full(kind, run_id, WorkerExit(None), self._transitions.resume_parent(kind, run))
        except Exception:
            _LOG.exception("could not continue %s, which waits for its child runs", run_id)
        finally:
            self._resuming.pop(run_id, None)

    def _watch(self, kind: AnyKind, run: Run, stage: Stage, worker: Worker, *, sent_control: Control | None) -> None:
        watch = Watch(kind, run.id, stage, worker, sent_control, kills=memory_kills())
        self._watches[run.id] = watch
        self._tasks[run.id] = asyncio.create_task(self._supervise(watch), name=f"watch {run.id}")

    async def _supervise(self, watch: Watch) -> None:
        """Read a worker's events until it exits and handle its exit; then watch any other worker of the run."""
        kind, run_id = watch.kind, watch.run_id
        try:
            worker: Worker | None = watch.worker
            while worker is not None:
                watch.worker = worker
                end = await self._wait(watch)
                while await self._ingest(kind, run_id):
                    pass
                worker = await self._worker_exited(kind, run_id, watch.stage, end, kills=watch.kills)
        except Exception:
            _LOG.exception("watching the worker of %s failed; it will be adopted again", run_id)
        finally:
            self._watches.pop(run_id, None)
            self._tasks.pop(run_id, None)
            self._notifier.notify()

    async def _wait(self, watch: Watch) -> WorkerExit:
        while (end := await asyncio.to_thread(watch.worker.poll)) is None:
            await self._ingest(watch.kind, watch.run_id)
            cancelled_at = watch.cancelled_at
            if cancelled_at is not None and time.monotonic() - cancelled_at > await self._patience_s(watch):
                _LOG.warning("the worker of %s does not exit after its run was cancelled; killing it", watch.run_id)
                watch.worker.signal(signal.SIGKILL)
            await asyncio.sleep(TICK_S)
        return end

    async def _patience_s(self, watch: Watch) -> float:
        """How long the worker of a cancelled run may take to exit before it is killed, in seconds."""

        def is_abandoned(db: sa.Connection) -> bool:
            parent = records.get(db, watch.run_id).parent
            return parent is not None and records.get(db, parent).wanted is Control.CANCEL

        patience_s = watch.kind.cancel_patience_s
        return min(CHILD_PATIENCE_S, patience_s) if await self._database.run(is_abandoned) else patience_s

    async def _ingest(self, kind: AnyKind, run_id: str) -> bool:
        """Record the worker's new events; returns whether there were any."""
        run = await self._database.run(lambda db: records.get(db, run_id))
        events, offset = await asyncio.to_thread(kind.directories.tail, run_id, run.events_offset)
        if offset == run.events_offset:
            return False
        await self._database.run(lambda db: journal.append(db, records.get(db, run_id), events, offset))
        self._notifier.notify()
        return True

    async def _worker_exited(
        self, kind: AnyKind, run_id: str, stage: Stage, end: WorkerExit, *, kills: int
    ) -> Worker | None:
        """Handle a worker's exit; returns the worker that holds the run instead, if there is one."""
        return await self._or_disk_full(kind, run_id, end, self._handle_exit(kind, run_id, stage, end, kills=kills))

    async def _or_disk_full(self, kind: AnyKind, run_id: str, end: WorkerExit, following: Awaitable[T]) -> T | None:
        """Await what follows in a run; end the run, and return None, if the disk is full."""
        try:
            return await following
        except OSError as error:
            if not is_full(error):
                raise
            _LOG.exception("cannot write what follows in %s", run_id)
            run = await self._database.run(lambda db: records.get(db, run_id))
            await self._transitions.abort_run(kind, run, Abort(AbortCause.DISK_FULL, end))
            return None

    async def _handle_exit(
        self, kind: AnyKind, run_id: str, stage: Stage, end: WorkerExit, *, kills: int
    ) -> Worker | None:
        transitions = self._transitions
        if stage.on_device:
            await transitions.count_device_time(kind, run_id)
        run = await self._database.run(lambda db: records.get(db, run_id))
        result = await asyncio.to_thread(kind.directories.read, run_id, protocol.RESULT, kind.result)
        may_advance = stage is not kind.stages[-1] and end.code in (DONE, None)
        if result is not None:
            await transitions.finish(kind, run, RunOutcome(result))
        elif end.code == BUSY:
            pid = await asyncio.to_thread(kind.directories.worker, run_id)
            if pid is not None:
                return Adopted(kind.directories, run_id, pid)
            await transitions.requeue(run, stage, "another worker held the run")
        elif run.wanted is Control.CANCEL:
            await transitions.abort_run(kind, run, Abort(AbortCause.CANCELLED, end))
        elif end.code == FULL:
            await transitions.abort_run(kind, run, Abort(AbortCause.DISK_FULL, end))
        elif may_advance and await transitions.advance(kind, run, stage, self.working()):
            return None
        elif run.wanted is Control.PAUSE:
            await self._move(kind, run, Status.PAUSED, "paused until it is resumed")
        elif self._stopping or end.code in (STOPPED, PAUSED, -signal.SIGTERM):
            await transitions.requeue(run, stage, None)
        else:
            await transitions.killed(kind, run, stage, end, out_of_memory=memory_kills() > kills)
        return None


def _stage_of(kind: AnyKind, run: Run) -> Stage:
    """The stage that a run's worker does: the one whose queue has the run's status, else the last."""
    return next((stage for stage in kind.stages if stage.waits_as is run.status), kind.stages[-1])
