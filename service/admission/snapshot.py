"""Point-in-time statistics of the queue, for telemetry and `hatrack top`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.admission.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """Gauges are current, counts are since the start. The adapter None is the base; a version without weights stands
    under the name of its flow."""

    queued: int
    queued_by_project: dict[str, int]
    queued_by_adapter: dict[str | None, int]
    in_flight: int
    in_flight_by_adapter: dict[str | None, int]
    background_queued: int
    background_in_flight: int
    width: int
    """Maximum number of requests in the engine at once."""
    common: int
    """Of these, the places that any flow may take."""
    slots_in_use: int
    slots_draining: int
    adapters_waiting: int
    """Adapters that wait for a slot."""
    prefill_tokens: int
    """Prompt tokens of admitted requests without a first token yet."""
    flows: int
    """Number of flows, including idle ones."""
    admitted: int
    admitted_background: int
    cold_loads: int
    """Requests admitted to load an adapter from disk."""
    left: int
    overloaded: int
    """Refused with 503: the queue was full."""
    share_full: int
    """Refused with 429: the caller's share of the queue was full."""
    timeouts: int
    """Refused with 503: the deadline passed in the queue."""
    withdrawn: int
    """Left the queue without being admitted, including timeouts."""


def take_snapshot(scheduler: Scheduler) -> QueueSnapshot:
    """The statistics of ``scheduler``; O(flows)."""
    by_project: Counter[str] = Counter()
    by_adapter: Counter[str | None] = Counter()
    in_flight: Counter[str | None] = Counter()
    leaves = [leaf for tree in (scheduler.callers, scheduler.background) for leaf in tree.leaves()]
    for leaf in leaves:
        if leaf.queued:
            by_project[str(leaf.path[0])] += leaf.queued
            by_adapter[leaf.name] += leaf.queued
        if leaf.in_flight:
            in_flight[leaf.name] += leaf.in_flight
    counts, slots = scheduler.counts, scheduler.slots
    return QueueSnapshot(
        queued=scheduler.queued,
        queued_by_project=dict(by_project),
        queued_by_adapter=dict(by_adapter),
        in_flight=scheduler.in_flight,
        in_flight_by_adapter=dict(in_flight),
        background_queued=scheduler.background.queued,
        background_in_flight=scheduler.background.in_flight,
        width=scheduler.policy.width,
        common=scheduler.policy.common,
        slots_in_use=len(slots.held),
        slots_draining=sum(tenure.draining for tenure in slots.held.values()),
        adapters_waiting=slots.waiting,
        prefill_tokens=scheduler.prefill,
        flows=len(leaves),
        admitted=counts.admitted,
        admitted_background=counts.background,
        cold_loads=counts.cold,
        left=counts.left,
        overloaded=counts.overloaded,
        share_full=counts.share_full,
        timeouts=counts.timeouts,
        withdrawn=counts.withdrawn,
    )
