"""A job's events as server-sent events: from the beginning or from `Last-Event-ID` on, until the job has ended."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Final

from trainer.errors import TooMany
from trainer.jobs import journal, records
from trainer.jobs.database import Database
from trainer.jobs.objects import event_object
from trainer.jobs.pulse import Pulse
from trainer.jobs.service import event_number
from trainer.jobs.state import Event, Job

MOST_STREAMS: Final = 256
PAGE: Final = 200
LOOK_S: Final = 5.0
QUIET_S: Final = 15.0
"""After so long without an event a comment is sent, so that nothing on the way takes the connection for dead."""


class Streams:
    """All open streams of events; bounded."""

    def __init__(self, database: Database, pulse: Pulse) -> None:
        self._database = database
        self._pulse = pulse
        self._open = 0

    async def open(self, job: Job, last_event_id: str | None) -> AsyncIterator[bytes]:
        """The stream of a job's events after that one. Raises Invalid, TooMany."""
        after = event_number(job, last_event_id) if last_event_id is not None else 0
        if self._open >= MOST_STREAMS:
            raise TooMany(f"{MOST_STREAMS} streams of events are open already", retry_after_s=10)
        return self._events(job.id, after)

    async def _events(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            said = time.monotonic()
            while True:
                # read before the events: what is said by the time that a job is over has then been sent
                over = (await self._database.run(lambda db: records.get(db, job_id))).over
                found = await self._following(job_id, after)
                for event in found:
                    yield _frame(event)
                    after, said = event.number, time.monotonic()
                if not found and over:
                    break
                if not found:
                    await self._pulse.wait(LOOK_S)
                if time.monotonic() - said >= QUIET_S:
                    said = time.monotonic()
                    yield b": still there\n\n"
            yield b"data: [DONE]\n\n"
        finally:
            self._open -= 1

    async def _following(self, job_id: str, after: int) -> list[Event]:
        return await self._database.run(lambda db: journal.following(db, job_id, after=after, limit=PAGE))


def _frame(event: Event) -> bytes:
    return f"id: {event.id}\ndata: {json.dumps(event_object(event))}\n\n".encode()
