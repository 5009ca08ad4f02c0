"""Which adapters are in the engine's memory, as far as the gateway knows.

vLLM keeps adapters in host memory (`max_cpu_loras`, least recently used first out) and some of these in slots. The
plugin's route reports them; it is polled periodically, and only if requests went to the engine since the last poll.
Between two polls, an adapter for which the engine has answered counts as loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from service.concurrency import repeat
from service.engine.client import EngineClient
from service.errors import HatrackError

POLL_S: Final = 5.0
POLL_TIMEOUT_S: Final = 5.0
_LOG = logging.getLogger("hatrack.engine")


@dataclass(frozen=True, slots=True)
class ResidencySnapshot:
    """For telemetry; counts are since the start, times in seconds."""

    resident: frozenset[str]
    """Digests in the engine's host memory or in a slot."""
    known: bool
    """The engine has been asked since it started."""
    cold_loads: int
    """Adapters that requests have had loaded from the disk."""
    cold_load_s: float
    """Time that these took together, from admission to the first byte of the first answer."""
    last_cold_load_s: float | None
    looks: int
    look_errors: int


class Residency:
    """A view of the engine's memory, at most a few seconds old while there is traffic.

    Args:
        engine: Client of the engine.
        activity: A number that changes whenever a request goes to the engine; while it is unchanged, nothing is polled.
        poll_s: Seconds between two polls.
    """

    def __init__(
        self, engine: EngineClient, *, activity: Callable[[], int] = lambda: 0, poll_s: float = POLL_S
    ) -> None:
        self._engine = engine
        self.activity = activity
        self._poll_s = poll_s
        self._resident: frozenset[str] = frozenset()
        self._known = False
        self._ready = False
        self._epoch = 0
        self._polled_activity = -1
        self._wake = asyncio.Event()
        self._cold_loads = 0
        self._cold_load_s = 0.0
        self._last_s: float | None = None
        self._polls = 0
        self._errors = 0

    def is_cold(self, adapter: str) -> bool:
        """True if the engine is known not to have loaded ``adapter``; False if unknown."""
        return self._known and adapter not in self._resident

    def loaded(self, adapter: str, seconds: float) -> None:
        """Record that the engine loaded ``adapter`` and answered, ``seconds`` after the request was admitted."""
        self._cold_loads += 1
        self._cold_load_s += seconds
        self._last_s = seconds
        self._resident |= {adapter}

    def engine_changed(self, *, ready: bool) -> None:
        """Record whether the engine is ready; of a new engine nothing is known to be loaded."""
        if ready == self._ready:
            return
        self._ready = ready
        self._epoch += 1
        self._resident, self._known = frozenset(), False
        self._polled_activity = -1
        self._wake.set()

    def snapshot(self) -> ResidencySnapshot:
        """The current state."""
        return ResidencySnapshot(
            resident=self._resident,
            known=self._known,
            cold_loads=self._cold_loads,
            cold_load_s=self._cold_load_s,
            last_cold_load_s=self._last_s,
            looks=self._polls,
            look_errors=self._errors,
        )

    async def run(self) -> None:
        """Poll periodically until cancelled."""
        await repeat(self._poll_if_active, self._poll_s, self._wake)

    async def _poll_if_active(self) -> None:
        if self._ready and self.activity() != self._polled_activity:
            await self.poll()

    async def poll(self) -> None:
        """Poll once; if the engine does not answer, the state is unchanged."""
        epoch, activity = self._epoch, self.activity()
        self._polls += 1
        try:
            async with asyncio.timeout(POLL_TIMEOUT_S):
                answer = await self._engine.report(loaded=True)
        except (HatrackError, TimeoutError) as error:
            self._errors += 1
            _LOG.debug("the engine did not report its loaded adapters", extra={"reason": type(error).__name__})
            return
        loaded = answer.get("loaded")
        if not isinstance(loaded, list) or epoch != self._epoch:
            return
        self._resident = frozenset(str(digest) for digest in loaded)
        self._known = True
        self._polled_activity = activity
