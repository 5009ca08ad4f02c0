"""How long the engine has been busy, and whose time it was.

At each moment the engine's time is shared equally among the requests that are in it: while n requests are open, each
is charged 1/n of a second per second. So the shares add up to exactly the time in which any request was open, whatever
ran beside what, and a request that shares a batch with others is charged less than one that has the engine alone.

The sum of 1/n over time is one running total for all requests, as in processor sharing: a request's share is the
difference of that total between its end and its beginning. Two additions a request, no list of who is open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class EngineTime(Protocol):
    """Measures requests' shares of an engine's time: here (``EngineClock``), or as its agent tells them."""

    own_s: float

    @property
    def busy_s(self) -> float:
        """Seconds in which any request was in the engine."""

    def enter(self) -> float:
        """A request goes to the engine; give what this returns to :meth:`leave`."""

    def leave(self, entered: float) -> float:
        """A request has left the engine; returns its share of the engine's time, s."""

    def own(self) -> AbstractContextManager[None]:
        """Measure a request of the gateway's own."""


class EngineClock:
    """Measures the engine's time. Runs on the event loop's thread.

    Args:
        clock: Monotonic seconds.
    """

    __slots__ = ("_at", "_busy_s", "_clock", "_share_s", "open", "own_s")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._at = clock()
        self._busy_s = 0.0
        self._share_s = 0.0
        self.open = 0
        """Requests in the engine now."""
        self.own_s = 0.0
        """Share of the gateway's own requests, s; see :meth:`own`."""

    def enter(self) -> float:
        """A request goes to the engine; give what this returns to :meth:`leave`."""
        self._advance()
        self.open += 1
        return self._share_s

    def leave(self, entered: float) -> float:
        """A request has left the engine; returns its share of the engine's time, s."""
        self._advance()
        self.open -= 1
        return self._share_s - entered

    @contextmanager
    def own(self) -> Iterator[None]:
        """Measure a request of the gateway's own."""
        entered = self.enter()
        try:
            yield
        finally:
            self.own_s += self.leave(entered)

    @property
    def busy_s(self) -> float:
        """Seconds in which any request was in the engine, since the start."""
        self._advance()
        return self._busy_s

    @property
    def share_s(self) -> float:
        """The share of a request that was in the engine all the time so far, s."""
        self._advance()
        return self._share_s

    def _advance(self) -> None:
        now = self._clock()
        if self.open:
            passed = now - self._at
            self._busy_s += passed
            self._share_s += passed / self.open
        self._at = now


class EngineClocks:
    """The sums of several engines' clocks."""

    def __init__(self, clocks: Sequence[EngineTime]) -> None:
        self._clocks = clocks

    @property
    def busy_s(self) -> float:
        """Seconds in which any request was in an engine, added up over the engines."""
        return sum(clock.busy_s for clock in self._clocks)

    @property
    def own_s(self) -> float:
        """Share of the gateway's own requests, s."""
        return sum(clock.own_s for clock in self._clocks)
