"""Liveness of an engine, judged by its output, its own metrics, and canary requests while it is idle.

A token that the data path received is a sign of life. If requests wait for the engine and no token was received, the
engine's own metrics are read: any change of them is a sign of life, too, since vLLM reports them after each step, also
after one that only read a part of a prompt. What it has sent and a slow client has not taken is not waited for. While
it is idle, a canary asks the base for the log-probabilities of a few tokens, which must be finite.

A busy engine is never considered faulty for being busy, nor one of our own for getting no core: its silence, and how
long a canary may take, are measured in time that its processes did not wait for one; and while they compute, a step may
take a minute.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Final

from service.engine.client import EngineClient
from service.engine.process import EngineProcess, UndelayedTime
from service.errors import HatrackError, Timeout

METRICS_S: Final = 2.0
"""Between two readings of the metrics of an engine that is silent, s."""
METRICS_PREFIX: Final = "vllm:"
"""Of the engine's own metrics; others in the same text count our requests, and the server's CPU time."""
MIN_STALL_S: Final = 5.0
"""Shorter silences are never a stall, whatever is set: a single step may take seconds."""
LONG_STEP_S: Final = 60.0
"""Shorter silences of an engine of our own are no stall while its processes compute: a long prompt on slow cores."""
COMPUTING: Final = 0.5
"""Cores that processes use who compute; a frozen engine, or one that waits for something, uses hardly any."""
STILL_READINGS: Final = 2
"""How often its metrics must have been found still: a single reading may fail for other reasons."""
CANARY_TIMEOUT_S: Final = 30.0
UNDELAYED_S: Final = 10.0
"""An engine of our own that has not answered a canary in time has so much longer, not counting the time in which its
processes wait for a core, s."""
MAX_CANARY_S: Final = 300.0
"""No canary waits longer for its answer, s: an engine that hangs is found on the busiest machine, too."""
LOOK_S: Final = 0.25
"""Between two looks at an engine that owes an answer, s."""
CANARIES_FAILED: Final = 3
CANARY_TEXT: Final = "The canary sings"
RETRY_SHARE: Final = 0.2
"""After a failed canary, the next one follows after this fraction of the usual interval."""

_LOG = logging.getLogger("hatrack.engine")


class EngineFailed(Exception):
    """The engine is unusable; the message says why."""


class LivenessMonitor:
    """Watches one engine after another.

    Args:
        client: The data path's, whose requests in flight are counted.
        probe: Another client, for questions of our own.
        base_name: The base's served name.
        stall_s: Longest silence with requests in flight, s; at least MIN_STALL_S.
        canary_s: Time between canaries, s.
    """

    def __init__(
        self, client: EngineClient, probe: EngineClient, *, base_name: str, stall_s: float, canary_s: float
    ) -> None:
        self._client = client
        self._probe = probe
        self._base_name = base_name
        self._stall_s = max(stall_s, MIN_STALL_S)
        self._canary_s = canary_s
        self._asking: asyncio.Task[bool] | None = None
        self.reset()

    def reset(self, engine: EngineProcess | None = None) -> None:
        """Start watching a new engine; ``engine`` is its processes, where they are ours."""
        self.drop_canary()
        self._engine = engine
        self._last_sign = time.monotonic()
        self._sign_seen = self._last_sign
        self._silent_s = 0.0
        self._looked_at: float | None = None
        """When it was looked at last, if it owed something then."""
        self._still = 0
        """Readings since the last sign of life that found the metrics still."""
        self._undelayed: UndelayedTime | None = None
        """Measures the silence of an engine of our own, from the first of them on;"""
        self._undelayed_s = 0.0
        """its last reading."""
        self._metrics_read_at, self._failed_canaries = 0.0, 0
        self._metrics: str | None = None

    def saw_tokens(self) -> None:
        """Record output of the engine as a sign of life."""
        self._last_sign = time.monotonic()

    async def check(self) -> str | None:
        """Check once; call this several times a second. Returns None if all is well, else the reason for doubt.

        Raises:
            EngineFailed: The engine is unusable.
        """
        if self._client.awaiting:
            await self._check_busy()
        elif self._client.in_flight:  # all that it has sent waits for clients: it owes nothing, and may be busy
            self.drop_canary()
            self._looked_at = None
        else:
            await self._check_idle()
        return "the canary request failed or was not finite" if self._failed_canaries else None

    def drop_canary(self) -> None:
        """Wait no longer for an answer to a canary."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def _check_busy(self) -> None:
        self.drop_canary()  # behind callers' requests it may take as long as these
        silent_s, patience_s = await self._measure_silence(), self._stall_s
        if self._undelayed is not None and self._undelayed.cores > COMPUTING:
            patience_s = max(patience_s, LONG_STEP_S)
        due = time.monotonic() - max(self._metrics_read_at, self._last_sign) > METRICS_S
        if not due and silent_s <= patience_s:
            return
        if await self._metrics_changed():
            self.saw_tokens()
        if self._last_sign >= self._metrics_read_at:  # or a token came meanwhile
            return
        self._still += 1
        if self._undelayed is None and self._engine is not None:
            self._undelayed, self._undelayed_s = await asyncio.to_thread(self._engine.undelayed_time), 0.0
        if self._still >= STILL_READINGS and silent_s > patience_s:
            raise EngineFailed(
                f"requests are in flight, but no token was generated for {silent_s:.0f} s, and the engine's metrics "
                "stand still"
            )

    async def _measure_silence(self) -> float:
        """For how long requests have waited for the engine since its last sign of life, s. Other time does not count,
        and makes nothing forgotten: callers who give up one after the other show no sign of life."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if self._last_sign > self._sign_seen:
            self._sign_seen = self._last_sign
            self._silent_s, self._still, self._undelayed = 0.0, 0, None
            before = None if before is None else max(before, self._last_sign)
        passed_s = 0.0 if before is None else now - before
        if self._undelayed is not None:
            undelayed_s = await asyncio.to_thread(self._undelayed.read)
            passed_s = 0.0 if before is None else undelayed_s - self._undelayed_s
            self._undelayed_s = undelayed_s
        self._silent_s += passed_s
        return self._silent_s

    async def _check_idle(self) -> None:
        self._looked_at = None
        if self._asking is None:
            if time.monotonic() - self._last_sign < self._canary_s * (RETRY_SHARE if self._failed_canaries else 1):
                return
            self._asking = asyncio.create_task(self.canary(engine=self._engine), name="engine-canary")
        done, _ = await asyncio.wait({self._asking}, timeout=LOOK_S)
        if not done:
            return
        self._asking = None
        self._failed_canaries = 0 if done.pop().result() else self._failed_canaries + 1
        if self._failed_canaries >= CANARIES_FAILED:
            raise EngineFailed(f"{self._failed_canaries} canary requests in a row failed or were not finite")

    async def canary(self, timeout_s: float = CANARY_TIMEOUT_S, *, engine: EngineProcess | None = None) -> bool:
        """Ask the base for the log-probabilities of a few tokens; True if they are finite.

        Args:
            timeout_s: How long it has to answer, s.
            engine: Its processes: while they wait for a core it has longer, up to MAX_CANARY_S. None: never.
        """
        try:
            rows = await self._ask(timeout_s, engine)
        except HatrackError as error:
            _LOG.warning("the canary request failed", extra={"reason": error.message})
            return False
        if not all(math.isfinite(value) for row in rows for value in row):
            return False
        self.saw_tokens()
        return True

    async def _ask(self, timeout_s: float, engine: EngineProcess | None) -> list[list[float]]:
        """The answer to a canary. Raises HatrackError."""
        if engine is None:
            return await self._probe.logprobs(self._base_name, [CANARY_TEXT], timeout_s=timeout_s)
        max_s = max(timeout_s, MAX_CANARY_S)
        asking = asyncio.create_task(self._probe.logprobs(self._base_name, [CANARY_TEXT], timeout_s=max_s))
        try:
            await asyncio.wait({asking}, timeout=timeout_s)
            if not asking.done():
                _LOG.warning("the engine is slow to answer a canary: looking whether it gets a core")
                undelayed = await asyncio.to_thread(engine.undelayed_time)
                while not asking.done():
                    await asyncio.wait({asking}, timeout=LOOK_S)
                    if await asyncio.to_thread(undelayed.read) >= UNDELAYED_S and not asking.done():
                        raise Timeout("the engine did not answer in time, and it was not for want of a core")
            return await asking
        finally:
            asking.cancel()

    async def _metrics_changed(self) -> bool:
        """Whether the engine's own metrics differ from the last reading. A first one does: silence counts from it."""
        self._metrics_read_at = time.monotonic()
        try:
            text = await self._probe.get_text("/metrics")
        except HatrackError:
            return False  # an engine that is frozen does not answer
        before = self._metrics
        self._metrics = "\n".join(line for line in text.splitlines() if line.startswith(METRICS_PREFIX))
        return before != self._metrics
