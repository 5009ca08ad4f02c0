"""A run's events as server-sent events: from the beginning or from `Last-Event-ID` on, until the run has ended."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from trainer.database import Database
from trainer.errors import TooMany
from trainer.runs import journal, records
from trainer.runs.notifier import Notifier
from trainer.runs.state import Event, Run

MAX_STREAMS: Final = 256
PAGE: Final = 200
LOOK_S: Final = 5.0
QUIET_S: Final = 15.0
"""After so long without an event a comment is sent, so that nothing on the way takes the connection for dead."""


class Streams:
    """All open streams of events; bounded.

    Args:
        show: An event as the API shows it, with its `id`.
    """

    def __init__(self, database: Database, notifier: Notifier, show: Callable[[Event], dict[str, Any]]) -> None:
        self._database = database
        self._notifier = notifier
        self._show = show
        self._open = 0

    async def open(self, run: Run, after: int) -> AsyncIterator[bytes]:
        """The stream of a run's events after the one of that number. Raises TooMany."""
        if self._open >= MAX_STREAMS:
            raise TooMany(f"{MAX_STREAMS} streams of events are open already", retry_after_s=10)
        return self._events(run.id, after)

    async def _events(self, run_id: str, after: int) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            said = time.monotonic()
            while True:
                # read before the events: what is said by the time that a run is over has then been sent
                over = (await self._database.run(lambda db: records.get(db, run_id))).over
                events = await self._following(run_id, after)
                for event in events:
                    yield self._frame(event)
                    after, said = event.number, time.monotonic()
                if not events and over:
                    break
                if not events:
                    await self._notifier.wait(LOOK_S)
                if time.monotonic() - said >= QUIET_S:
                    said = time.monotonic()
                    yield b": still there\n\n"
            yield b"data: [DONE]\n\n"
        finally:
            self._open -= 1

    async def _following(self, run_id: str, after: int) -> list[Event]:
        return await self._database.run(lambda db: journal.following(db, run_id, after=after, limit=PAGE))

    def _frame(self, event: Event) -> bytes:
        shown = self._show(event)
        return f"id: {shown['id']}\ndata: {json.dumps(shown)}\n\n".encode()
