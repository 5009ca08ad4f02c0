"""What becomes of jobs: whose turn it is, the worker that is at it, and what is done when a worker ends, however it
ends. One worker looks at data and one trains; the rest wait.

    validating_files ─▶ queued ─▶ running ─▶ succeeded | failed | cancelled
           ▲               ▲ └──── killed or told to stop: it goes on from its last checkpoint
           └─── paused ────┘
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

import sqlalchemy as sa

from trainer.config import Settings
from trainer.jobs import journal, records
from trainer.jobs.database import Database
from trainer.jobs.endings import Endings
from trainer.jobs.failures import is_full
from trainer.jobs.place import Place
from trainer.jobs.process import Adopted, Command, End, Worker, memory_kills, spawn, worker_command
from trainer.jobs.pulse import Pulse
from trainer.jobs.spec import BUSY, DONE, FAILED, FULL, PAUSED, STOPPED, Control, Stage
from trainer.jobs.state import UNDER_WAY, Job, Status

TICK_S: Final = 0.25
TURN_S: Final = 1.0
CANCEL_PATIENCE_S: Final = 300.0
"""A worker that has not ended so long after it was told to is killed: what it does is wanted by nobody."""
STAGES: Final = {Stage.VALIDATE: Status.VALIDATING, Stage.TRAIN: Status.QUEUED}
_LOG = logging.getLogger("hatrack.trainer.jobs")


@dataclass(slots=True)
class Watch:
    """A worker at a job. ``ordered`` is what its control file says, None where nobody knows; ``kills`` the kernel's
    count when it began."""

    job_id: str
    stage: Stage
    worker: Worker
    ordered: Control | None
    kills: int
    cancelled_at: float | None = None


class Supervisor:
    """Runs the jobs' workers.

    Args:
        command: The worker's command line.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        place: Place,
        pulse: Pulse,
        endings: Endings,
        command: Command = worker_command,
    ) -> None:
        self._settings = settings
        self._database = database
        self._place = place
        self._pulse = pulse
        self._endings = endings
        self._command = command
        self._watches: dict[str, Watch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False

    def working(self) -> list[int]:
        """Process ids of the workers that train now."""
        return [watch.worker.pid for watch in self._watches.values() if watch.stage is Stage.TRAIN]

    async def start(self) -> None:
        """Find the workers that a former trainer has left, and begin; a first turn sees to the jobs that have none."""
        for job in await self._database.run(lambda db: records.with_status(db, UNDER_WAY)):
            await self._adopt(job)
        await self._tidy()
        self._loop = asyncio.create_task(self._run(), name="jobs")

    async def stop(self) -> None:
        """Have the workers checkpoint and end, and wait for it for a while; those that need longer go on alone."""
        self._stopping = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for watch in self._watches.values():
            watch.worker.signal(signal.SIGTERM)
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.stop_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _adopt(self, job: Job) -> bool:
        """Watch over a worker that this trainer has not started; False where there is none."""
        pid = await asyncio.to_thread(self._place.worker, job.id)
        if pid is None:
            return False
        _LOG.info("found the worker of %s: process %d", job.id, pid)
        stage = Stage.VALIDATE if job.status is Status.VALIDATING else Stage.TRAIN
        self._watch(job, stage, Adopted(self._place, job.id, pid), ordered=None)
        return True

    async def _recover(self, job: Job) -> None:
        """A job that runs and that nobody watches: its worker may be alive all the same, or have ended unseen."""
        if not await self._adopt(job):
            while await self._ingest(job.id):
                pass
            await self._ended(job.id, Stage.TRAIN, End(None), kills=memory_kills())

    async def _tidy(self) -> None:
        """What a crash between two steps has left: folders of no job, keys of jobs that are over."""
        known = {job.id: job.over for job in await self._database.run(lambda db: records.with_status(db, [*Status]))}
        for job_id in await asyncio.to_thread(self._place.ids):
            if known.get(job_id, True):
                await self._endings.spend_key(job_id)
            if job_id not in known:
                await asyncio.to_thread(self._place.discard, job_id)

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:
                _LOG.exception("a turn of the jobs failed; the next one comes")
            await self._pulse.wait(TURN_S)

    async def _turn(self) -> None:
        for job in await self._database.run(lambda db: records.with_status(db, UNDER_WAY | {Status.PAUSED})):
            if self._is_due(job):
                try:
                    await self._obey(job.id)
                except Exception:
                    _LOG.exception("what is wanted of %s could not be brought about", job.id)
        for stage, status in STAGES.items():
            if not any(watch.stage is stage for watch in self._watches.values()):
                taken = await self._database.run(partial(records.take, status=status, but=[*self._watches]))
                if taken is not None:
                    await self._begin(taken, stage)

    def _is_due(self, job: Job) -> bool:
        """Whether something else is wanted of a job than what it does."""
        watch = self._watches.get(job.id)
        if watch is not None:
            return watch.ordered is not job.wanted
        is_paused, is_to_pause = job.status is Status.PAUSED, job.wanted is Control.PAUSE
        return job.status is Status.RUNNING or job.wanted is Control.CANCEL or is_paused is not is_to_pause

    async def _obey(self, job_id: str) -> None:
        """Bring about what is wanted of a job: by word to its worker, or at once where it has none."""
        job = await self._database.run(lambda db: records.get(db, job_id))
        watch = self._watches.get(job_id)
        if watch is not None:
            if watch.ordered is not job.wanted:
                await asyncio.to_thread(self._place.order, job_id, job.wanted)
                watch.ordered = job.wanted
                watch.cancelled_at = time.monotonic() if job.wanted is Control.CANCEL else None
        elif job.status is Status.RUNNING:
            await self._recover(job)
        elif job.over:
            return  # its worker has ended since
        elif job.wanted is Control.CANCEL:
            await self._endings.cancelled(job)
        elif job.wanted is Control.PAUSE and job.status is not Status.PAUSED:
            await self._move(job, Status.PAUSED, "paused")
        elif job.wanted is Control.RUN and job.status is Status.PAUSED:
            planned = await asyncio.to_thread(self._place.plan, job_id) is not None
            await self._move(job, Status.QUEUED if planned else Status.VALIDATING, "resumed; it waits for its turn")

    async def _move(self, job: Job, status: Status, said: str) -> None:
        await asyncio.to_thread(self._place.order, job.id, job.wanted)

        def move(db: sa.Connection) -> None:
            if records.get(db, job.id).wanted is job.wanted:
                moved = records.change(db, job.id, status=status, queued_at=time.time(), estimated_finish=None)
                journal.say(db, moved, said)

        await self._database.run(move)
        self._pulse.beat()

    async def _begin(self, job: Job, stage: Stage) -> None:
        await self._ingest(job.id)  # where the file is shorter than was read of it, that shows before it grows again
        try:
            await asyncio.to_thread(self._place.order, job.id, Control.RUN)
            if stage is Stage.TRAIN:
                await self._endings.prepare(job)
            # on this thread: a start that outlived its cancellation would leave a worker that nobody watches
            worker = spawn(self._place.of(job.id), stage, self._command)
        except OSError as error:
            _LOG.exception("the worker of %s cannot be started", job.id)
            await self._ended(job.id, stage, End(FULL if is_full(error) else FAILED), kills=memory_kills())
            return
        self._watch(job, stage, worker, ordered=Control.RUN)
        if stage is Stage.TRAIN:
            said = "Fine-tuning job goes on" if job.device_s else "Fine-tuning job started"
            await self._database.run(lambda db: journal.say(db, records.get(db, job.id), said))
        self._pulse.beat()

    def _watch(self, job: Job, stage: Stage, worker: Worker, *, ordered: Control | None) -> None:
        watch = Watch(job.id, stage, worker, ordered, kills=memory_kills())
        self._watches[job.id] = watch
        self._tasks[job.id] = asyncio.create_task(self._see_through(watch), name=f"watch {job.id}")

    async def _see_through(self, watch: Watch) -> None:
        """Read what a worker says until it ends, and see to what follows; then perhaps another one's."""
        job_id = watch.job_id
        try:
            worker: Worker | None = watch.worker
            while worker is not None:
                watch.worker = worker
                end = await self._wait(watch)
                while await self._ingest(job_id):
                    pass
                worker = await self._ended(job_id, watch.stage, end, kills=watch.kills)
        except Exception:
            _LOG.exception("watching the worker of %s failed; it is looked for again", job_id)
        finally:
            self._watches.pop(job_id, None)
            self._tasks.pop(job_id, None)
            self._pulse.beat()

    async def _wait(self, watch: Watch) -> End:
        while (end := await asyncio.to_thread(watch.worker.poll)) is None:
            await self._ingest(watch.job_id)
            if watch.cancelled_at is not None and time.monotonic() - watch.cancelled_at > CANCEL_PATIENCE_S:
                _LOG.warning("the worker of %s does not end; it is killed", watch.job_id)
                watch.worker.signal(signal.SIGKILL)
            await asyncio.sleep(TICK_S)
        return end

    async def _ingest(self, job_id: str) -> bool:
        """Take over what the worker has said since; whether it was anything."""
        job = await self._database.run(lambda db: records.get(db, job_id))
        found, offset = await asyncio.to_thread(self._place.tail, job_id, job.events_offset)
        if offset == job.events_offset:
            return False
        await self._database.run(lambda db: journal.append(db, records.get(db, job_id), found, offset))
        self._pulse.beat()
        return True

    async def _ended(self, job_id: str, stage: Stage, end: End, *, kills: int) -> Worker | None:
        """See to what follows from a worker's end; gives another worker that turned out to be at the job."""
        try:
            return await self._follow(job_id, stage, end, kills=kills)
        except OSError as error:
            if not is_full(error):
                raise
            _LOG.exception("what follows from the end of the worker of %s cannot be written", job_id)
            await self._endings.disk_full(await self._database.run(lambda db: records.get(db, job_id)))
            return None

    async def _follow(self, job_id: str, stage: Stage, end: End, *, kills: int) -> Worker | None:
        if stage is Stage.TRAIN:
            await self._endings.note_device_time(job_id)
        job = await self._database.run(lambda db: records.get(db, job_id))
        result = await asyncio.to_thread(self._place.result, job_id)
        if result is not None:
            await self._endings.finish(job, result)
        elif end.code == BUSY:
            pid = await asyncio.to_thread(self._place.worker, job_id)
            if pid is not None:
                return Adopted(self._place, job_id, pid)
            await self._endings.again(job, STAGES[stage], "another worker was at it")
        elif job.wanted is Control.CANCEL:
            await self._endings.cancelled(job)
        elif end.code == FULL:
            await self._endings.disk_full(job)
        elif (
            stage is Stage.VALIDATE and end.code in (DONE, None) and await self._endings.validated(job, self.working())
        ):
            return None
        elif job.wanted is Control.PAUSE:
            await self._move(job, Status.PAUSED, "it waits to be resumed")
        elif self._stopping or end.code in (STOPPED, PAUSED, -signal.SIGTERM):
            await self._endings.again(job, STAGES[stage], None)
        else:
            await self._endings.killed(job, STAGES[stage], end, for_memory=memory_kills() > kills)
        return None
