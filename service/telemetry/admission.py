"""Metrics of the admission queue and of the engine's memory: what waits, what is in the engine, what is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric as Family

from service.admission.ports import LoadedAdapters, Queue
from service.admission.snapshot import QueueSnapshot
from service.engine.residency import ResidencySnapshot
from service.telemetry import metrics
from service.telemetry.account import MetricsAccount

CALLER, BACKGROUND = "caller", "background"


class AdmissionSource:
    """Metrics of the admission queue, the requests in the engine and the LoRA slots.

    Args:
        queue_limit: Requests that may wait at once.
        account: Knows under which labels what the queue counts is shown.
    """

    name = "admission"

    def __init__(self, queue: Queue, queue_limit: int, account: MetricsAccount) -> None:
        self._queue = queue
        self._queue_limit = queue_limit
        self._account = account

    async def families(self) -> Iterator[Family]:
        """All metrics, from one snapshot."""
        return self._families(self._queue.snapshot())

    def _families(self, now: QueueSnapshot) -> Iterator[Family]:
        yield metrics.QUEUED.values(_classes(now.queued, now.background_queued))
        yield metrics.QUEUE_LIMIT.value(self._queue_limit)
        yield metrics.ADMITTED.values(_classes(now.in_flight, now.background_in_flight))
        yield metrics.WIDTH.value(now.width)
        yield metrics.SLOTS_IN_USE.value(now.slots_in_use)
        yield metrics.SLOT_WAITERS.value(now.adapters_waiting)
        yield metrics.GRANTED.values(_classes(now.admitted, now.admitted_background))
        yield metrics.QUEUE_REFUSED.values(
            [(("queue_full",), now.overloaded), (("share_full",), now.share_full), (("timeout",), now.timeouts)]
        )
        flows = self._account.flows()
        yield metrics.ADAPTER_RUNNING.values((labels, now.in_flight_by_adapter.get(flow, 0)) for labels, flow in flows)
        yield metrics.ADAPTER_QUEUED.values((labels, now.queued_by_adapter.get(flow, 0)) for labels, flow in flows)


class ResidencySource:
    """Metrics of the adapters in the engine's memory and of loads from disk.

    Args:
        account: Knows under which labels an adapter's digest is shown; names of the same digest show the same.
    """

    name = "residency"

    def __init__(self, residency: LoadedAdapters, account: MetricsAccount) -> None:
        self._residency = residency
        self._account = account

    async def families(self) -> Iterator[Family]:
        """All metrics, from one snapshot; those of resident adapters are missing while nothing is known of them."""
        return self._families(self._residency.snapshot())

    def _families(self, now: ResidencySnapshot) -> Iterator[Family]:
        yield metrics.COLD_LOADS.value(now.cold_loads)
        yield metrics.COLD_LOAD_S.value(now.cold_load_s)
        if now.known:
            yield metrics.ENGINE_RESIDENT.value(len(now.resident))
            yield metrics.ADAPTER_RESIDENT.values(
                (labels, float(digest in now.resident)) for labels, digest in self._account.targets() if digest
            )


def _classes(both: int, background: int) -> list[tuple[tuple[str], float]]:
    return [((CALLER,), both - background), ((BACKGROUND,), background)]
