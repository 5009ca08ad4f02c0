"""Probes adapters that failed on the data path again, in the background, before marking them corrupt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from service.errors import HatrackError
from service.registry.proof import Prober

MAX_QUEUED: Final = 64
"""Maximum number of queued digests. More at once means that the engine is at fault, not the adapters."""

TRIES: Final = 2
log = logging.getLogger(__name__)


class CorruptionChecker:
    """A bounded queue of digests to check, each at most once.

    Args:
        prober: Asks the engine.
        mark_corrupt: Called with a digest whose probes failed ``TRIES`` times while the base model was healthy.
    """

    def __init__(self, prober: Prober, mark_corrupt: Callable[[str], Awaitable[None]]) -> None:
        self._prober = prober
        self._mark_corrupt = mark_corrupt
        self._queue: asyncio.Queue[str] = asyncio.Queue(MAX_QUEUED)
        self._queued: set[str] = set()

    def add(self, digest: str) -> None:
        """Queue a digest, unless it is queued already or the queue is full."""
        if digest not in self._queued and not self._queue.full():
            self._queued.add(digest)
            self._queue.put_nowait(digest)

    async def work(self) -> None:
        """Check queued digests one after another, until cancelled."""
        while True:
            digest = await self._queue.get()
            try:
                await self._check(digest)
            except HatrackError as error:
                log.warning("the adapter %s could not be checked for corruption: %s", digest[:12], error.message)
            except Exception:
                log.exception("the adapter %s could not be checked for corruption", digest[:12])
            finally:
                self._queued.discard(digest)
                self._queue.task_done()

    async def idle(self) -> None:
        """Return when the queue is empty and no check is running."""
        await self._queue.join()

    async def _check(self, digest: str) -> None:
        for _ in range(TRIES):
            if await self._prober.answers(digest):
                return
        await (
            self._prober.check_base()
        )  # if the engine itself is corrupt, this raises: that says nothing about the adapter
        await self._mark_corrupt(digest)
