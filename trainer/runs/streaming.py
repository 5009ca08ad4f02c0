"""Streams a run's events as server-sent events, from the start or after `Last-Event-ID`, until the run ends."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from trainer.database import Database
from trainer.errors import TooManyRequests
from trainer.runs import journal, records
from trainer.runs.notifier import Notifier
from trainer.runs.state import Event, Run

MAX_STREAMS: Final = 256
PAGE_SIZE: Final = 200
POLL_S: Final = 5.0
KEEPALIVE_S: Final = 15.0
"""After this long without an event a comment is sent, so that no proxy closes the idle connection."""


class Streams:
    """All open event streams; their number is bounded.

    Args:
        show: Gives the API object of an event, with its `id`.
    """

    def __init__(self, database: Database, notifier: Notifier, show: Callable[[Event], dict[str, Any]]) -> None:
        self._database = database
        self._notifier = notifier
        self._show = show
        self._open = 0

    async def open(self, run: Run, after: int) -> AsyncIterator[bytes]:
        """A stream of the run's events after event number `after`. Raises TooManyRequests."""
        if self._open >= MAX_STREAMS:
            raise TooManyRequests(
                f"{MAX_STREAMS} event streams are open, the maximum; close one, or poll instead",
                retry_after_s=10,
            )
        return self._events(run.id, after)

    async def _events(self, run_id: str, after: int) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            last_sent_at = time.monotonic()
            while True:
                # read before the events, so that a finished run's last events are still sent
                over = (await self._database.run(lambda db: records.get(db, run_id))).over
                events = await self._following(run_id, after)
                for event in events:
                    yield self._frame(event)
                    after, last_sent_at = event.number, time.monotonic()
                if not events and over:
                    break
                if not events:
                    await self._notifier.wait(POLL_S)
                if time.monotonic() - last_sent_at >= KEEPALIVE_S:
                    last_sent_at = time.monotonic()
                    yield b": still there\n\n"
            yield b"data: [DONE]\n\n"
        finally:
            self._open -= 1

    async def _following(self, run_id: str, after: int) -> list[Event]:
        return await self._database.run(lambda db: journal.following(db, run_id, after=after, limit=PAGE_SIZE))

    def _frame(self, event: Event) -> bytes:
        shown = self._show(event)
        return f"id: {shown['id']}\ndata: {json.dumps(shown)}\n\n".encode()
