"""What the rooms around the data path have counted, read at each scrape through the few names needed of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.metrics_core import Metric as Family

from service.access.limits import LimitName
from service.registry.counts import Counts
from service.telemetry import metrics


class Limits(Protocol):
    """The keys' limits."""

    @property
    def refused(self) -> Mapping[LimitName, int]:
        """Refusals by the limit's name."""


class Usage(Protocol):
    """The writer of usage; rows, counted since the start."""

    rows_written: int
    failed_flushes: int

    @property
    def pending_rows(self) -> int:
        """Rows not yet written."""


class Registry(Protocol):
    """The adapters."""

    @property
    def counts(self) -> Counts:
        """How much there is of everything."""


class LimitsSource:
    """Limits hit."""

    name = "limits"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def families(self) -> Iterator[Family]:
        """Refusals by limit."""
        return iter([metrics.LIMIT_HITS.values(((name,), count) for name, count in self._limits.refused.items())])


class UsageSource:
    """Usage written and waiting."""

    name = "usage"

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    async def families(self) -> Iterator[Family]:
        """Rows written, rows waiting, writes that failed."""
        usage = self._usage
        return iter(
            [
                metrics.USAGE_ROWS.value(usage.rows_written),
                metrics.USAGE_PENDING.value(usage.pending_rows),
                metrics.USAGE_ERRORS.value(usage.failed_flushes),
            ]
        )


class RegistrySource:
    """Adapters, and versions by what has become of them."""

    name = "registry"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def families(self) -> Iterator[Family]:
        """What the registry holds, all projects together."""
        counts = self._registry.counts
        versions = [(("ready", servable.value), float(count)) for servable, count in counts.ready.items()]
        versions += [((state, ""), float(count)) for state, count in counts.unready.items()]
        return iter(
            [
                metrics.REGISTRY_ADAPTERS.value(counts.adapters),
                metrics.REGISTRY_VERSIONS.values(versions),
                metrics.REGISTRY_PINS.value(counts.pins),
                metrics.REGISTRY_SPLITS.value(counts.splits),
            ]
        )
