"""Probes adapters that failed on the data path again, in the background, before marking them corrupt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from service.agents import Bases
from service.errors import HatrackError
from service.registry.probers import Probers

MAX_QUEUED: Final = 64
"""Maximum number of queued digests. More at once means that the engine is at fault, not the adapters."""

TRIES: Final = 2
log = logging.getLogger(__name__)


class CorruptionChecker:
    """A bounded queue of digests to check, each at most once.

    Args:
        bases: Whose engines are asked.
        probers: Ask them.
        mark_corrupt: Called with a digest whose probes failed ``TRIES`` times while the base model was healthy, and the
            base's served name.
    """

    def __init__(self, bases: Bases, probers: Probers, mark_corrupt: Callable[[str, str], Awaitable[None]]) -> None:
        self._bases = bases
        self._probers = probers
        self._mark_corrupt = mark_corrupt
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(MAX_QUEUED)
        self._queued: set[tuple[str, str]] = set()

    def add(self, digest: str, base: str) -> None:
        """Queue a digest that failed on this base, unless it is queued already or the queue is full."""
        suspect = digest, base
        if suspect not in self._queued and not self._queue.full():
            self._queued.add(suspect)
            self._queue.put_nowait(suspect)

    async def work(self) -> None:
        """Check queued digests one after another, until cancelled."""
        while True:
            digest, base = suspect = await self._queue.get()
            try:
                await self._check(digest, base)
            except HatrackError as error:
                log.warning("the adapter %s could not be checked for corruption: %s", digest[:12], error.message)
            except Exception:
                log.exception("the adapter %s could not be checked for corruption", digest[:12])
            finally:
                self._queued.discard(suspect)
                self._queue.task_done()

    async def idle(self) -> None:
        """Return when the queue is empty and no check is running."""
        await self._queue.join()

    async def _check(self, digest: str, base: str) -> None:
        prober = self._probers.on(self._bases.named(base), digest)
        for _ in range(TRIES):
            if await prober.answers(digest):
                return
        # if the engine itself is corrupt, this raises: that says nothing about the adapter
        await prober.check_base()
        await self._mark_corrupt(digest, base)
