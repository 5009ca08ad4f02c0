"""How late the event loop is: what makes every request of a single process slow at once."""

from __future__ import annotations

import asyncio
from typing import Final

from service.histogram import Histogram
from service.telemetry import metrics

TICK_S: Final = 0.25


class LoopLag:
    """Asks to be woken at regular times and counts how much later it was."""

    def __init__(self) -> None:
        self.histogram = Histogram(metrics.LAG_S)

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.histogram.observe(max(0.0, loop.time() - due))
