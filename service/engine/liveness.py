"""Signs of life of an engine: the tokens that it gives, its own counters, and a canary while it is idle.

A token that the data path saw is a sign; while requests are in flight and no token was seen, the engine's own counters
of tokens are looked at; while it is idle, a canary asks the base for the log-probabilities of a few tokens, which must
be numbers. Being busy is never a fault.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from service.engine.client import EngineClient
from service.engine.counters import tokens_made
from service.errors import HatrackError

COUNTERS_S: Final = 2.0
CANARY_TIMEOUT_S: Final = 30.0
CANARIES_FAILED: Final = 3
CANARY_TEXT: Final = "The canary sings"
RETRY_SHARE: Final = 0.2
"""After a canary that failed the next comes in this share of the usual time."""

_LOG = logging.getLogger("hatrack.engine")


class EngineFailed(Exception):
    """This engine is no use any more; the message says why."""


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
        """Another engine is watched from now on."""
        self._last_sign = time.monotonic()
        self._busy_since: float | None = None
        self._counters_read_at, self._tokens_made, self._failed_canaries = 0.0, -1.0, 0

    def saw_tokens(self) -> None:
        """The engine gave something: it lives."""
        self._last_sign = time.monotonic()

    async def check(self) -> str | None:
        """One look, to be taken several times a second: None where all is well, else what is doubtful.

        Raises:
            EngineFailed: It is no use any more.
        """
        if self._client.in_flight:
            await self._check_busy()
        else:
            await self._check_idle()
        return "the canary had no finite answer" if self._failed_canaries else None

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
            raise EngineFailed(f"requests are in flight and no token came for {silent_s:.0f} s")

    async def _check_idle(self) -> None:
        self._busy_since = None
        if time.monotonic() - self._last_sign < self._canary_s * (RETRY_SHARE if self._failed_canaries else 1):
            return
        self._failed_canaries = 0 if await self.canary() else self._failed_canaries + 1
        if self._failed_canaries >= CANARIES_FAILED:
            raise EngineFailed(f"{self._failed_canaries} canaries in a row had no finite answer")

    async def canary(self, timeout_s: float = CANARY_TIMEOUT_S) -> bool:
        """Ask the base for the log-probabilities of a few tokens: True where they are numbers."""
        try:
            rows = await self._probe.logprobs(self._base_name, [CANARY_TEXT], timeout_s=timeout_s)
        except HatrackError as error:
            _LOG.warning("the canary failed", extra={"reason": error.message})
            return False
        if not all(math.isfinite(value) for row in rows for value in row):
            return False
        self.saw_tokens()
        return True

    async def _tokens(self) -> float:
        try:
            return tokens_made(await self._probe.get_text("/metrics"))
        except HatrackError:
            return -1.0
