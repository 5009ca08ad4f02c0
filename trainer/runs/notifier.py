"""Wakes all waiters on change: new events, another state."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Notifier:
    """Wakes whoever waits. Of one event loop; a wait that is not woken ends by itself, so that nothing hangs on it."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wake all who wait now."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, at_most_s: float) -> None:
        """Until the next notification, or for that long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._next.wait()
