"""Wakes all waiters on change: new events, another state."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Notifier:
    """Wakes waiters of one event loop. Every wait has a timeout, so that a missed notification does no harm."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wake all current waiters."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Wait for the next notification, or until the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._next.wait()
