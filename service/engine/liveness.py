"""Liveness of an engine, judged by its output, its token counters, and canary requests while it is idle.

A token that the data path received is a sign of life. If requests are in flight and no token was received, the engine's
own token counters are read. While it is idle, a canary asks the base for the log-probabilities of a few tokens, which
must be finite. A busy engine is never considered faulty for being busy.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from service.engine.client import EngineClient
from service.errors import HatrackError

COUNTERS_S: Final = 2.0
TOKEN_COUNTERS: Final = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
CANARY_TIMEOUT_S: Final = 30.0
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
        stall_s: Longest silence with requests in flight, s.
        canary_s: Time between canaries, s.
    """

    def __init__(
        self, client: EngineClient, probe: EngineClient, *, base_name: str, stall_s: float, canary_s: float
    ) -> None:
        self._client = client
        self._probe = probe
        self._base_name = base_name
        self._stall_s = stall_s
        self._canary_s = canary_s
        self.reset()

    def reset(self) -> None:
        """Start watching a new engine."""
        self._last_sign = time.monotonic()
        self._busy_since: float | None = None
        self._counters_read_at, self._tokens_made, self._failed_canaries = 0.0, -1.0, 0

    def saw_tokens(self) -> None:
        """Record output of the engine as a sign of life."""
        self._last_sign = time.monotonic()

    async def check(self) -> str | None:
        """Check once; call this several times a second. Returns None if all is well, else the reason for doubt.

        Raises:
            EngineFailed: The engine is unusable.
        """
        if self._client.in_flight:
            await self._check_busy()
        else:
            await self._check_idle()
        return "the canary request failed or was not finite" if self._failed_canaries else None

    async def _check_busy(self) -> None:
        now = time.monotonic()
        self._busy_since = self._busy_since or now
        if now - max(self._counters_read_at, self._last_sign) > COUNTERS_S:
            self._counters_read_at, before = now, self._tokens_made
            self._tokens_made = await self._tokens()
            if self._tokens_made > before >= 0:
                self.saw_tokens()
        silent_s = time.monotonic() - max(self._last_sign, self._busy_since)
        if silent_s > self._stall_s:
            raise EngineFailed(f"requests are in flight, but no token was generated for {silent_s:.0f} s")

    async def _check_idle(self) -> None:
        self._busy_since = None
        if time.monotonic() - self._last_sign < self._canary_s * (RETRY_SHARE if self._failed_canaries else 1):
            return
        self._failed_canaries = 0 if await self.canary() else self._failed_canaries + 1
        if self._failed_canaries >= CANARIES_FAILED:
            raise EngineFailed(f"{self._failed_canaries} canary requests in a row failed or were not finite")

    async def canary(self, timeout_s: float = CANARY_TIMEOUT_S) -> bool:
        """Ask the base for the log-probabilities of a few tokens; True if they are finite."""
        try:
            rows = await self._probe.logprobs(self._base_name, [CANARY_TEXT], timeout_s=timeout_s)
        except HatrackError as error:
            _LOG.warning("the canary request failed", extra={"reason": error.message})
            return False
        if not all(math.isfinite(value) for row in rows for value in row):
            return False
        self.saw_tokens()
        return True

    async def _tokens(self) -> float:
        try:
            return _tokens_processed(await self._probe.get_text("/metrics"))
        except HatrackError:
            return -1.0


def _tokens_processed(metrics: str) -> float:
    """How many tokens the engine has read and written since its start, from its Prometheus text."""
    total = 0.0
    for line in metrics.splitlines():
        if line.startswith(TOKEN_COUNTERS):
            name, _, value = line.rpartition(" ")
            if name.split("{", 1)[0] in TOKEN_COUNTERS:
                total += float(value)
    return total
