"""What becomes of evaluations: whose turn it is, the worker that is at it, and what is done when that ends, however it
ends. One at a time; the rest wait.

    queued ─▶ running ─▶ succeeded | failed | cancelled
       ▲ └──── killed or told to stop: what was answered stays answered
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from trainer.config import Settings
from trainer.evaluations import records
from trainer.evaluations.place import EvaluationPlace
from trainer.evaluations.spec import EvaluationResult
from trainer.evaluations.state import UNDER_WAY, Evaluation, Status
from trainer.jobs import spec
from trainer.jobs.database import Database
from trainer.jobs.gateway_side import GatewaySide
from trainer.jobs.process import Adopted, End, Worker, launch
from trainer.jobs.pulse import Pulse
from trainer.jobs.spec import BUSY, STOPPED, Control, Failure
from trainer.reviews.service import Reviews

TICK_S: Final = 0.25
TURN_S: Final = 1.0
CANCEL_PATIENCE_S: Final = 60.0
"""A worker that has not ended so long after it was told to is killed: what it does is wanted by nobody."""
KILLS_MOST: Final = 3
"""Restarts in a row that brought nothing, before an evaluation is given up."""
BACK_OFF_S: Final = (0.0, 5.0, 30.0)
_LOG = logging.getLogger("hatrack.trainer.evaluations")

Command = Callable[[Path], list[str]]


def worker_command(folder: Path) -> list[str]:
    """The command line of an evaluation's worker."""
    return [sys.executable, "-m", "trainer.evaluations.worker", str(folder)]


@dataclass(slots=True)
class Watch:
    """A worker at an evaluation; ``ordered`` is what its control file says, None where nobody knows."""

    evaluation_id: str
    worker: Worker
    ordered: Control | None
    cancelled_at: float | None = None


class Runner:
    """Runs the evaluations' workers, one at a time.

    Args:
        gateway: Has keys revoked that are spent.
        command: The worker's command line.
        reviews: Tells a worker how far its judge may be trusted, and takes in the pairs that it leaves for people.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        place: EvaluationPlace,
        pulse: Pulse,
        gateway: GatewaySide,
        command: Command = worker_command,
        reviews: Reviews | None = None,
    ) -> None:
        self._reviews = reviews
        self._settings = settings
        self._database = database
        self._place = place
        self._pulse = pulse
        self._gateway = gateway
        self._command = command
        self._watch: Watch | None = None
        self._seeing: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Find the worker that a former trainer has left, and begin."""
        for evaluation in await self._database.run(lambda db: records.with_status(db, [Status.RUNNING])):
            if await self._adopt(evaluation):
                break
        await self._tidy()
        self._loop = asyncio.create_task(self._run(), name="evaluations")

    async def stop(self) -> None:
        """Have the worker end, and wait for it for a while; it goes on at the next start."""
        self._stopping = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._watch is not None:
            self._watch.worker.signal(signal.SIGTERM)
        if self._seeing is not None:
            await asyncio.wait({self._seeing}, timeout=self._settings.stop_s)
            self._seeing.cancel()
            await asyncio.gather(self._seeing, return_exceptions=True)

    async def _adopt(self, evaluation: Evaluation) -> bool:
        """Watch over a worker that this trainer has not started; False where there is none."""
        pid = await asyncio.to_thread(self._place.worker, evaluation.id)
        if pid is None:
            return False
        _LOG.info("found the worker of %s: process %d", evaluation.id, pid)
        self._see(evaluation.id, Adopted(self._place, evaluation.id, pid), ordered=None)
        return True

    async def _tidy(self) -> None:
        """What a crash between two steps has left: folders of no evaluation, keys of those that are over."""
        known = await self._database.run(records.over_by_id)
        for evaluation_id in await asyncio.to_thread(self._place.ids):
            if known.get(evaluation_id, True):
                await self._gateway.spend_key(evaluation_id)
            if evaluation_id not in known:
                await asyncio.to_thread(self._place.discard, evaluation_id)

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:
                _LOG.exception("a turn of the evaluations failed; the next one comes")
            await self._pulse.wait(TURN_S)

    async def _turn(self) -> None:
        for evaluation in await self._database.run(lambda db: records.with_status(db, UNDER_WAY)):
            try:
                await self._obey(evaluation)
            except Exception:
                _LOG.exception("what is wanted of %s could not be brought about", evaluation.id)
        if self._watch is None:
            taken = await self._database.run(records.take)
            if taken is not None:
                await self._begin(taken)

    async def _obey(self, evaluation: Evaluation) -> None:
        """Bring about what is wanted: by word to the worker, or at once where there is none."""
        watch = self._watch
        if watch is not None and watch.evaluation_id == evaluation.id:
            if watch.ordered is not evaluation.wanted:
                await asyncio.to_thread(self._place.order, evaluation.id, evaluation.wanted)
                watch.ordered = evaluation.wanted
                watch.cancelled_at = time.monotonic() if evaluation.wanted is Control.CANCEL else None
        elif evaluation.status is Status.RUNNING:
            # nobody watches: its worker may be alive all the same, or have ended unseen
            if watch is None and not await self._adopt(evaluation):
                await self._ended(evaluation.id, End(None))
        elif evaluation.wanted is Control.CANCEL:
            await self._finish(evaluation.id, EvaluationResult(status="cancelled"))

    async def _begin(self, evaluation: Evaluation) -> None:
        try:
            await asyncio.to_thread(self._place.order, evaluation.id, evaluation.wanted)
            folder = self._place.of(evaluation.id)
            if self._reviews is not None:
                await self._reviews.prepare(evaluation.project, evaluation.body.get("judge"), folder)
            # on this thread: a start that outlived its cancellation would leave a worker that nobody watches
            worker = launch(folder, self._command(folder))
        except OSError:
            _LOG.exception("the worker of %s cannot be started", evaluation.id)
            await self._ended(evaluation.id, End(1))
            return
        self._see(evaluation.id, worker, ordered=evaluation.wanted)
        self._pulse.beat()

    def _see(self, evaluation_id: str, worker: Worker, *, ordered: Control | None) -> None:
        self._watch = Watch(evaluation_id, worker, ordered)
        self._seeing = asyncio.create_task(self._see_through(self._watch), name=f"watch {evaluation_id}")

    async def _see_through(self, watch: Watch) -> None:
        """Wait until a worker ends, and see to what follows; then perhaps another one's."""
        try:
            worker: Worker | None = watch.worker
            while worker is not None:
                watch.worker = worker
                worker = await self._ended(watch.evaluation_id, await self._wait(watch))
        except Exception:
            _LOG.exception("watching the worker of %s failed; it is looked for again", watch.evaluation_id)
        finally:
            self._watch = None
            self._pulse.beat()

    async def _wait(self, watch: Watch) -> End:
        while (end := await asyncio.to_thread(watch.worker.poll)) is None:
            if watch.cancelled_at is not None and time.monotonic() - watch.cancelled_at > CANCEL_PATIENCE_S:
                _LOG.warning("the worker of %s does not end; it is killed", watch.evaluation_id)
                watch.worker.signal(signal.SIGKILL)
            await asyncio.sleep(TICK_S)
        return end

    async def _ended(self, evaluation_id: str, end: End) -> Worker | None:
        """See to what follows from a worker's end; gives another worker that turned out to be at it."""
        evaluation = await self._database.run(lambda db: records.get(db, evaluation_id))
        result = await asyncio.to_thread(self._place.result, evaluation_id)
        if result is not None:
            await self._finish(evaluation_id, result)
        elif end.code == BUSY:
            pid = await asyncio.to_thread(self._place.worker, evaluation_id)
            if pid is not None:
                return Adopted(self._place, evaluation_id, pid)
            await self._again(evaluation_id)
        elif evaluation.wanted is Control.CANCEL:
            await self._finish(evaluation_id, EvaluationResult(status="cancelled"))
        elif self._stopping or end.code in (STOPPED, -signal.SIGTERM):
            await self._again(evaluation_id)
        else:
            await self._killed(evaluation, end)
        return None

    async def _again(self, evaluation_id: str) -> None:
        """Have it go on at the next chance, before others."""

        def requeue(db: sa.Connection) -> None:
            records.change(db, evaluation_id, status=Status.QUEUED, interrupted=True)

        await self._database.run(requeue)

    async def _killed(self, evaluation: Evaluation, end: End) -> None:
        """A worker died of something: it is started again, unless that has brought nothing several times in a row."""
        reached = await asyncio.to_thread(self._place.reached, evaluation.id)
        kills = evaluation.kills + 1 if reached == evaluation.progress else 1
        how = "was gone" if end.code is None else f"ended with exit code {end.code}"
        _LOG.warning("the worker of %s %s, %d times in a row without getting any further", evaluation.id, how, kills)
        if kills > KILLS_MOST:
            message = (
                f"The worker {how}, {kills} times in a row without getting any further. Its log in the evaluation's "
                "folder may say why; then ask for it anew."
            )
            failure = Failure(code="worker_killed", message=message)
            await self._finish(evaluation.id, EvaluationResult(status="failed", error=failure))
            return

        def requeue(db: sa.Connection) -> None:
            records.change(
                db,
                evaluation.id,
                status=Status.QUEUED,
                interrupted=True,
                kills=kills,
                progress=reached,
                not_before=time.time() + BACK_OFF_S[kills - 1],
            )

        await self._database.run(requeue)

    async def _finish(self, evaluation_id: str, result: EvaluationResult) -> None:
        """End it for good: its key is of no more use."""
        await asyncio.to_thread(self._place.write, evaluation_id, spec.RESULT, result)
        if self._reviews is not None and result.status == "succeeded":
            evaluation = await self._database.run(lambda db: records.get(db, evaluation_id))
            await self._reviews.take(evaluation.project, evaluation_id, self._place.of(evaluation_id))

        def end(db: sa.Connection) -> None:
            if not records.get(db, evaluation_id).over:
                records.change(
                    db,
                    evaluation_id,
                    status=Status(result.status),
                    finished_at=int(time.time()),
                    result=result.model_dump(mode="json"),
                )

        await self._database.run(end)
        await self._gateway.spend_key(evaluation_id)
        self._pulse.beat()
