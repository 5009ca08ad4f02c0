"""Pauses a worker between steps while callers' requests wait, for a bounded time.

A thread polls the gateway's load, so that a step never waits for a response.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from trainer.errors import GatewayRefused, GatewayUnreachable

LOAD_POLL_S: Final = 0.25
PAUSE_POLL_S: Final = 0.1
TOLD_AFTER_S: Final = 2.0
REST_SHARE: Final = 1.0
"""After a pause of the maximum length the worker trains for REST_SHARE times as long before the next."""


class TrafficMonitor:
    """Polls the load in a thread while the context manager is active.

    Args:
        load: Gives the numbers of callers' requests (waiting, in flight).
        above: The worker pauses while more requests than this, both together, are there …
        max_s: … for at most this many seconds at a time.
        check: Called during a pause; may raise to end it (a cancelled job).
        on_pause: Called once in a pause that has lasted for TOLD_AFTER_S.
    """

    def __init__(
        self,
        load: Callable[[], tuple[int, int]],
        *,
        above: int,
        max_s: float,
        check: Callable[[], None],
        on_pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._load = load
        self._above = above
        self._most_s = max_s
        self._check = check
        self._on_pause = on_pause
        self._busy = 0
        self._no_pause_until = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="traffic-monitor", daemon=True)
        self.paused_s = 0.0
        self.pauses = 0

    def __enter__(self) -> TrafficMonitor:
        self._poll()  # before the first step
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=5)

    def yield_to_traffic(self) -> float:
        """Pause while there is traffic; returns the seconds paused, which are counted even if `check` raises."""
        began = time.monotonic()
        if self._busy <= self._above or began < self._no_pause_until:
            return 0.0
        before = self.paused_s
        self.pauses += 1
        told = False
        try:
            while self._busy > self._above and time.monotonic() - began < self._most_s:
                self._check()
                if not told and time.monotonic() - began >= TOLD_AFTER_S:
                    told = True
                    self._on_pause()
                time.sleep(PAUSE_POLL_S)
        finally:
            self.paused_s += time.monotonic() - began
        pause_s = self.paused_s - before
        if self._busy > self._above:
            self._no_pause_until = time.monotonic() + REST_SHARE * pause_s
        return pause_s

    def _watch(self) -> None:
        while not self._end.wait(LOAD_POLL_S):
            self._poll()

    def _poll(self) -> None:
        try:
            self._busy = sum(self._load())
        except (GatewayUnreachable, GatewayRefused):
            self._busy = 0  # a gateway that does not respond has no traffic
