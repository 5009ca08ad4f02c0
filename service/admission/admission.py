"""The admission queues and the engine's residency, wired together for the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.admission.background import BackgroundEngine
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.config import Settings
from service.engine.busy import EngineClock
from service.engine.client import EngineClient
from service.engine.prefetch import Prefetcher
from service.engine.residency import Residency
from service.engine.watched import EngineState
from service.objects.adapters import StoredAdapters


class Admission:
    """Everything between the data path and the engine.

    Args:
        settings: Limits and timeouts.
        engine: The engine's client.
        on_change: Registers a listener for the engine's state.
        clock: Measures the engine's time.
        adapters: Brings adapters' files to where the engine reads them.
    """

    def __init__(
        self,
        settings: Settings,
        engine: EngineClient,
        on_change: Callable[[Callable[[EngineState], None]], None],
        clock: EngineClock | None = None,
        adapters: StoredAdapters | None = None,
    ) -> None:
        self.residency = Residency(engine)
        self._prefetcher = Prefetcher(settings.store_dir)
        self.queue = AdmissionQueue(Policy.from_settings(settings), self.residency, self._prefetcher)
        self.counting = AdmissionQueue(Policy.for_counting(settings))
        """For requests that only need the engine's tokenizer."""
        self.embedding = AdmissionQueue(Policy.for_embedding(settings))
        """For requests to the embedder; retrieval does not pass it."""
        self.residency.activity = lambda: self.queue.scheduler.counts.admitted
        self.background_engine = BackgroundEngine(engine, self.queue, settings.base_served_name, clock, adapters)
        """For proofs and warming, which yield to callers."""
        on_change(self._changed)

    def _changed(self, state: EngineState) -> None:
        self.residency.engine_changed(ready=state.name == "ready")
        self.queue.engine_changed(state)
        self.counting.engine_changed(state)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the view of the engine's loaded adapters up to date, and read ahead, while this is open."""
        work = asyncio.create_task(self.residency.run(), name="residency")
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, self._prefetcher.close(), return_exceptions=True)
