"""Serving comes first: a worker stands still between steps while callers are waiting, for a bounded time.

A thread asks the gateway how many callers' requests there are, so that a step never waits for an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from trainer.errors import GatewayRefused, GatewayUnreachable

POLL_S: Final = 0.25
LOOK_S: Final = 0.1
REST_SHARE: Final = 1.0
"""After a pause that ran into its bound the worker works for at least REST_SHARE times as long before the next."""


class ServingFirst:
    """Watches the load; usable as a context manager.

    Args:
        load: Gives callers' requests (waiting, in flight).
        above: More of both together than this make the worker pause …
        most_s: … for at most this long at a time.
        check: Called while pausing; may raise to end it (a cancelled job).
    """

    def __init__(
        self, load: Callable[[], tuple[int, int]], *, above: int, most_s: float, check: Callable[[], None]
    ) -> None:
        self._load = load
        self._above = above
        self._most_s = most_s
        self._check = check
        self._busy = 0
        self._work_until = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="serving-first", daemon=True)
        self.paused_s = 0.0
        self.pauses = 0

    def __enter__(self) -> ServingFirst:
        self._look()  # before the first step, not a while after it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=5)

    def give_way(self) -> float:
        """Stand still while callers are there; returns the seconds that it took, which count though `check` raises."""
        began = time.monotonic()
        if self._busy <= self._above or began < self._work_until:
            return 0.0
        before = self.paused_s
        self.pauses += 1
        try:
            while self._busy > self._above and time.monotonic() - began < self._most_s:
                self._check()
                time.sleep(LOOK_S)
        finally:
            self.paused_s += time.monotonic() - began
        took = self.paused_s - before
        if self._busy > self._above:
            self._work_until = time.monotonic() + REST_SHARE * took
        return took

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        try:
            self._busy = sum(self._load())
        except (GatewayUnreachable, GatewayRefused):
            self._busy = 0  # a gateway that does not answer serves nobody
