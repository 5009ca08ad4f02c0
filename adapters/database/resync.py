"""Has what is kept in memory read again from the database, after a moment in which the two may have come apart.

Keys, the catalog and running batches are kept in memory, and follow each change once it is saved. Two failures break
that: the answer to COMMIT is lost, so that nobody knows whether it is saved; or it is, and what is to be read behind
it cannot be. The caller is told to try again, and may not do so, or be told that nothing is left to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

RETRY_S: Final = 2.0
"""Seconds between two attempts while the database does not answer."""
Reload = Callable[[], Awaitable[None]]
"""Reads again what one part keeps in memory; raises where that is not possible now, and is called again then."""
_LOG: Final = logging.getLogger("hatrack.database")


class Resync:
    """Reloads all parts in the background, once it is asked for, until each of them has succeeded."""

    def __init__(self) -> None:
        self._reloads: list[Reload] = []
        self._task: asyncio.Task[None] | None = None
        self._requests = 0
        self._is_closed = False
        self._answers = asyncio.Event()

    def add(self, reload: Reload) -> None:
        """Call ``reload`` after each request, in the order in which the parts were added."""
        self._reloads.append(reload)

    async def remove(self, reload: Reload) -> None:
        """Call it no more; it is not at work any more behind this. Raises ValueError if it was not added."""
        self._reloads.remove(reload)
        if self._task is not None:
            await self._stop()
            self.request()  # the others have not heard of it, perhaps

    def request(self) -> None:
        """Memory and database may differ. To be called on the event loop; returns at once."""
        self._requests += 1
        if self._task is None and not self._is_closed:
            self._task = asyncio.create_task(self._run(), name="database-resync")

    def wake(self) -> None:
        """The database answers again: do not wait for the next attempt."""
        self._answers.set()

    async def idle(self) -> None:
        """Return once nothing is requested any more."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Give up, for good: the next start reads all of it."""
        self._is_closed = True
        await self._stop()

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        is_logged = False
        try:
            while True:
                requests = self._requests
                self._answers.clear()
                try:
                    for reload in tuple(self._reloads):
                        await reload()
                except Exception as error:
                    if not is_logged:  # once, not at every attempt
                        _LOG.warning("what is kept in memory may be out of date until the database answers: %s", error)
                    is_logged = True
                else:
                    if requests == self._requests:
                        _LOG.info("what is kept in memory was read again from the database")
                        return
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._answers.wait()
        finally:
            self._task = None
