"""What an ``Admission`` is for an engine here, for one behind an agent: queues and memory are the agent's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.admission.background import BackgroundEngine
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.admission.remote_queue import RemoteQueue, numbers
from service.admission.snapshot import QueueSnapshot
from service.config import Settings
from service.engine.remote import RemoteEngine
from service.engine.residency import ResidencySnapshot
from service.engine.watched import EngineState


class RemoteAdmission:
    """The agent's queues, as seen from here.

    Args:
        settings: The engine's, as the gateway has them.
        engine: With its session.
    """

    def __init__(self, settings: Settings, engine: RemoteEngine) -> None:
        link, count = engine.link, numbers()
        self.queue = RemoteQueue(link, "model", count)
        self.counting = RemoteQueue(link, "tokenizer", count)
        self.embedding = AdmissionQueue(Policy.for_embedding(settings))
        """The embedder is the gateway's own, whoever runs the engine."""
        self.residency = RemoteResidency()
        self.background_engine = BackgroundEngine(
            engine.client, self.queue, settings.base_served_name, engine.clock, adapters=None
        )
        self._queues = (self.queue, self.counting)
        link.on("admitted", self._admitted)
        link.on("refused", self._refused)
        link.on("queue", self._queue)
        link.on("loaded", self.residency.told)
        engine.on_change(self._changed)

    def _admitted(self, number: int) -> None:
        any(queue.admitted(number) for queue in self._queues)

    def _refused(self, number: int, error: Any) -> None:
        any(queue.refused(number, error) for queue in self._queues)

    def _queue(self, told: dict[str, Any]) -> None:
        for field in ("queued_by_adapter", "in_flight_by_adapter"):
            told[field] = {adapter or None: count for adapter, count in told[field].items()}
        self.queue.told(QueueSnapshot(**told))

    def _changed(self, state: EngineState) -> None:
        for queue in self._queues:
            queue.engine_changed(state)
        if state.name != "ready":
            self.residency.told(False, [], 0, 0.0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Nothing runs here: the agent tells."""
        yield


class RemoteResidency:
    """What the agent says of its engine's memory."""

    def __init__(self) -> None:
        self._snapshot = ResidencySnapshot(frozenset(), False, 0, 0.0, None, 0, 0)

    def told(self, known: bool, loaded: list[str], cold_loads: int, cold_load_s: float) -> None:
        """The agent's view: whether the engine was asked, the digests, and how many loads took how long."""
        self._snapshot = ResidencySnapshot(frozenset(loaded), known, cold_loads, cold_load_s, None, 0, 0)

    def snapshot(self) -> ResidencySnapshot:
        """The latest of it."""
        return self._snapshot
