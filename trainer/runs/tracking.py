"""Follows the events of runs and hands them to the operator's experiment trackers.

It reads the journal, in the trainer's process, so no worker waits for it; what a tracker has had is written down after
each batch, so a tracker that is away, a restart and a crash lose nothing. A run is told, in events, that its tracker
does not answer, and when it does again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from trainer.database import Database
from trainer.errors import TrackerFailed
from trainer.runs import journal, records
from trainer.runs.notifier import Notifier
from trainer.runs.state import Event, Run
from trainer.tracking import records as tracking
from trainer.tracking.records import TrackedRow, TrackingState
from trainer.tracking.tracker import Point, TrackedJob, Tracker

POLL_S: Final = 5.0
"""Seconds between two batches of a run."""
BATCH: Final = 500
"""Events of a batch."""
AT_ONCE: Final = 4
MAX_DUE: Final = 100
ATTEMPT_S: Final = 120.0
BACK_OFF_S: Final = (10.0, 60.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0)
"""Pauses after failed attempts; after one more failure the tracker is given up for the run."""
JITTER: Final = 0.2
NOT_METRICS: Final = frozenset({"step", "total_steps", "seconds_left"})
_LOG = logging.getLogger("hatrack.trainer.tracking")


@dataclass(frozen=True, slots=True)
class _Batch:
    run: Run
    events: list[Event]
    last_step: int
    """The last step that the tracker has had: a resumed training repeats some."""


class TrackingFollower:
    """Hands the runs that name a tracker to it.

    Args:
        trackers: By name.
        describe: Gives a run as the named tracker shows it.
    """

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        trackers: Mapping[str, Tracker],
        describe: Callable[[Run, str], TrackedJob],
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._trackers = trackers
        self._describe = describe
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start following, from where an earlier trainer stopped."""
        self._task = asyncio.create_task(self._work(), name="tracking")

    async def stop(self) -> None:
        """Stop; the next trainer goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await asyncio.gather(*(tracker.close() for tracker in self._trackers.values()), return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                await self.round()
            except Exception:
                _LOG.exception("a round of tracking failed")
            await asyncio.sleep(POLL_S)

    async def round(self) -> None:
        """Send one batch of each run that is due."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def attempt(row: TrackedRow) -> None:
            async with limit:
                await self._attempt(row)

        rows = await self._database.run(lambda db: tracking.due(db, now=time.time(), limit=MAX_DUE))
        await asyncio.gather(*map(attempt, rows))

    async def _attempt(self, row: TrackedRow) -> None:
        tracker = self._trackers.get(row.tracker)
        if tracker is None:
            text = f"{row.tracker} is no longer set up: what it has not had of this job is not sent"
            await self._change(row, text, "warn", state=TrackingState.GIVEN_UP)
            return
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await self._send(tracker, row)
        except TrackerFailed as error:
            await self._postpone(tracker, row, error.message)
        except TimeoutError:
            await self._postpone(tracker, row, f"no answer within {ATTEMPT_S:.0f} s")
        except Exception as error:
            _LOG.exception("%s cannot be told of %s", tracker.title, row.run)
            await self._postpone(tracker, row, type(error).__name__)

    async def _send(self, tracker: Tracker, row: TrackedRow) -> None:
        """Send the next batch, and the end once all events are sent. Raises TrackerFailed."""
        batch = await self._database.run(lambda db: _read(db, row))
        job = self._describe(batch.run, tracker.name)
        later = time.time() + POLL_S
        if not job.params and not batch.run.over:
            await self._change(row, not_before=later)  # before there is a plan there is nothing to show
            return
        external_id = row.external_id
        if external_id is None:
            external_id = await tracker.open(job)
            await self._change(row, external_id=external_id)
        points = points_in(batch.events, after=batch.last_step)
        if points:
            await tracker.log(job, external_id, points)
        sent = batch.events[-1].number if batch.events else row.sent
        is_last = batch.run.over and len(batch.events) < BATCH
        if is_last:
            await tracker.finish(job, external_id)
        text = f"{tracker.title} takes the job's metrics again; it has had them all so far" if row.tries else None
        state = TrackingState.DONE if is_last else TrackingState.OPEN
        await self._change(row, text, sent=sent, tries=0, not_before=later, state=state)

    async def _postpone(self, tracker: Tracker, row: TrackedRow, reason: str) -> None:
        _LOG.warning("%s was not told of %s: %s", tracker.title, row.run, reason)
        if row.tries >= len(BACK_OFF_S):
            gone = f"{tracker.title} is given up after {row.tries + 1} attempts ({reason}); the job is as it is"
            await self._change(row, gone, "warn", state=TrackingState.GIVEN_UP)
            return
        pause_s = BACK_OFF_S[row.tries] * (1 + JITTER * random.random())  # noqa: S311 (spreads attempts)
        text = None
        if row.tries == 0:
            text = f"{tracker.title} does not take the job's metrics ({reason}); the job goes on, they are sent later"
        await self._change(row, text, "warn", tries=row.tries + 1, not_before=time.time() + pause_s)

    async def _change(
        self, row: TrackedRow, text: str | None = None, level: Literal["info", "warn"] = "info", **values: Any
    ) -> None:
        """Update the row, and tell the run something."""

        def work(db: sa.Connection) -> None:
            tracking.change(db, row, **values)
            if text is not None:
                journal.record_event(db, records.get(db, row.run), text, level=level)

        await self._database.run(work)
        if text is not None:
            self._notifier.notify()


def _read(db: sa.Connection, row: TrackedRow) -> _Batch:
    # the run first: its last events are there once it is over
    run = records.get(db, row.run)
    events = journal.following(db, row.run, after=row.sent, limit=BATCH)
    return _Batch(run, events, journal.last_step(db, row.run, up_to=row.sent))


def points_in(events: Sequence[Event], *, after: int) -> list[Point]:
    """The numbers of the `metrics` events with a step greater than ``after``, one point a step, in order."""
    points: dict[int, Point] = {}
    for event in events:
        step = event.data.get("step") if event.type == "metrics" else None
        if isinstance(step, int) and step > after:
            numbers = {
                name: float(value)
                for name, value in event.data.items()
                if name not in NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
            }
            points[step] = Point(step, event.at, numbers)
    return [points[step] for step in sorted(points)]
