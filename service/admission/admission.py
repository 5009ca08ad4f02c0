"""The gate and what belongs to it, joined: one object for the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.admission.background import GatedEngine
from service.admission.gate import Gate
from service.admission.policy import Policy
from service.config import Settings
from service.engine.client import EngineClient
from service.engine.residency import Residency
from service.engine.watched import EngineState


class Admission:
    """Everything between the data path and the engine.

    Args:
        settings: Widths, bounds and times.
        engine: The engine's client.
        on_change: Takes a listener of the engine's states.
    """

    def __init__(
        self, settings: Settings, engine: EngineClient, on_change: Callable[[Callable[[EngineState], None]], None]
    ) -> None:
        self.residency = Residency(engine)
        self.gate = Gate(Policy.from_settings(settings), self.residency)
        self.counting = Gate(Policy.for_counting(settings))
        """For requests that the engine answers with its tokenizer."""
        self.residency.activity = lambda: self.gate.scheduler.counts.admitted
        self.background_engine = GatedEngine(engine, self.gate, settings.base_served_name)
        """For proofs and warming: behind callers."""
        on_change(self._changed)

    def _changed(self, state: EngineState) -> None:
        self.residency.engine_changed(ready=state.name == "ready")
        self.gate.engine_changed(state)
        self.counting.engine_changed(state)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the view of the engine's memory fresh."""
        work = asyncio.create_task(self.residency.run(), name="residency")
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
