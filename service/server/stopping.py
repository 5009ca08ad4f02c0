"""How a gateway or front stops: it says so first, and goes on taking requests until balancers have seen it."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import Final

import uvicorn

_LOG: Final = logging.getLogger("hatrack.server")


class Stopping:
    """Whether the process was told to stop and still takes requests (HATRACK_STOP_DELAY_S); `/readyz` is 503 then."""

    def __init__(self) -> None:
        self.began = False


class StoppingServer(uvicorn.Server):
    """Listens for a while after SIGTERM.

    Another signal to stop, or Ctrl-C in the first place, does not wait.

    Args:
        stopping: Told when the wait begins.
        delay_s: How long it is, s; 0: none.
    """

    def __init__(self, config: uvicorn.Config, stopping: Stopping, delay_s: float) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._delay_s = delay_s
        self._stops_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        is_first = not self.should_exit and self._stops_at is None
        super().handle_exit(sig, frame)
        if is_first and self.started and sig == signal.SIGTERM and self._delay_s > 0:
            self._stops_at = time.monotonic() + self._delay_s
            self._stopping.began = True
            self.should_exit = False
            _LOG.info("about to stop; requests are still taken", extra={"seconds": self._delay_s})

    async def on_tick(self, counter: int) -> bool:
        """True ends the main loop; it is called every tenth of a second."""
        if self._stops_at is not None and time.monotonic() >= self._stops_at:
            self.should_exit = True
        return await super().on_tick(counter)
