"""Adapters that failed in the data path are asked again, in the background, before they are judged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from service.errors import HatrackError
from service.registry.proof import Prober

MAX_SUSPECTS: Final = 64
"""Digests in line. More at once means that the engine, not they, is at fault."""

TRIES: Final = 2
log = logging.getLogger(__name__)


class Suspects:
    """A bounded line of digests, each in it once.

    Args:
        prober: Asks the engine.
        convict: Called with a digest whose probes failed ``TRIES`` times while the base was well.
    """

    def __init__(self, prober: Prober, convict: Callable[[str], Awaitable[None]]) -> None:
        self._prober = prober
        self._convict = convict
        self._line: asyncio.Queue[str] = asyncio.Queue(MAX_SUSPECTS)
        self._known: set[str] = set()

    def add(self, digest: str) -> None:
        """Put a digest in line, unless it is there already or the line is full."""
        if digest not in self._known and not self._line.full():
            self._known.add(digest)
            self._line.put_nowait(digest)

    async def work(self) -> None:
        """Ask about one after another, until cancelled."""
        while True:
            digest = await self._line.get()
            try:
                await self._examine(digest)
            except HatrackError as error:
                log.warning("suspect %s could not be examined: %s", digest[:12], error.message)
            except Exception:
                log.exception("suspect %s could not be examined", digest[:12])
            finally:
                self._known.discard(digest)
                self._line.task_done()

    async def idle(self) -> None:
        """Return when nobody is in line or being asked about."""
        await self._line.join()

    async def _examine(self, digest: str) -> None:
        for _ in range(TRIES):
            if await self._prober.answers(digest):
                return
        await self._prober.check_base()  # a poisoned engine says nothing about the adapter
        await self._convict(digest)
