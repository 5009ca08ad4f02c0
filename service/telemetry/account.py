"""Per-request counters for `/metrics`, with bounded memory.

Each (project, adapter, version) has a series, up to a maximum number: only resolved names create series, and requests
beyond the maximum are counted under `(other)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.metrics_core import Metric as Family

from service.engine.contract import FAULT_CODES
from service.histogram import Histogram
from service.registry.catalog import Catalog
from service.telemetry import metrics
from service.telemetry.metrics import Metric
from service.telemetry.record import Record

Labels = tuple[str, str, str]
"""project, adapter, version"""

NONE: Final = "(none)"
BASE: Final = "(base)"
EMBEDDER: Final = "(embedder)"
OTHER: Final = "(other)"
"""Parentheses cannot occur in the name of a project, adapter or error code."""

SERIES_PER_CHUNK: Final = 8
"""Series that are written without yielding to the event loop, about a millisecond."""
MAX_CODES: Final = 100
SWEEP_AFTER: Final = 1000
"""Requests under `(other)` between two sweeps for series of deleted adapters."""


class Series:
    """All counts of one version of one adapter in one project."""

    __slots__ = (
        "cached",
        "completion",
        "digest",
        "engine_s",
        "faults",
        "first_token",
        "flow",
        "inter_token",
        "labels",
        "prompt",
        "queue",
        "requests",
    )

    def __init__(self, labels: Labels, digest: str | None = None, flow: str | None = None) -> None:
        self.labels = labels
        self.digest = digest
        self.flow = flow
        self.requests: dict[tuple[str, str], int] = {}
        self.faults: dict[str, int] = {}
        self.prompt = self.cached = self.completion = 0
        self.engine_s = 0.0
        self.first_token: Histogram | None = None
        self.inter_token: Histogram | None = None
        self.queue: Histogram | None = None


class MetricsAccount:
    """Counts every request in a few microseconds. Not thread-safe: runs on the event loop only.

    Args:
        catalog: Tells which adapters still exist; series of deleted ones are evicted.
        max_series: Maximum series of adapter versions; also the maximum of per-project series for unresolved models.
    """

    def __init__(self, catalog: Catalog, max_series: int) -> None:
        self._catalog = catalog
        self._max_series = max_series
        self._targets: dict[Labels, Series] = {}
        self._projects: dict[str, Series] = {}
        self._overflow = Series((OTHER, OTHER, ""))
        self._until_sweep = 0
        self._errors: dict[tuple[str, str], int] = {}
        self._durations: dict[str, Histogram] = {}

    def __call__(self, record: Record) -> None:
        """Count ``record``; what the gateway has answered for a front is counted there."""
        if record.forwarded:
            return
        series = self._series(record)
        route = record.route
        ended = (route, record.outcome)
        series.requests[ended] = series.requests.get(ended, 0) + 1
        duration = self._durations.get(route)
        if duration is None:
            duration = self._durations[route] = Histogram(metrics.TOTAL_S)
        duration.observe(record.total_s)
        usage = record.usage
        if usage is not None:
            series.prompt += usage.prompt_tokens
            series.cached += usage.cached_tokens
            series.completion += usage.completion_tokens
        series.engine_s += record.engine_s
        if record.queue_s is not None:
            if series.queue is None:
                series.queue = Histogram(metrics.WAIT_S)
            series.queue.observe(record.queue_s)
        if record.stream and record.first_byte_s is not None:
            self._count_stream(series, record.first_byte_s, record.gaps)
        if record.code is not None:
            self._count_error(series, route, record.code)

    def _count_stream(self, series: Series, first_token_s: float, gaps: Iterable[float]) -> None:
        if series.first_token is None or series.inter_token is None:
            series.first_token, series.inter_token = Histogram(metrics.FIRST_TOKEN_S), Histogram(metrics.GAP_S)
        series.first_token.observe(first_token_s)
        observe = series.inter_token.observe
        for gap in gaps:
            observe(gap)

    def _count_error(self, series: Series, route: str, code: str) -> None:
        key = (route, code)
        if key not in self._errors and len(self._errors) >= MAX_CODES:
            key = (route, OTHER)
        self._errors[key] = self._errors.get(key, 0) + 1
        if code in FAULT_CODES:
            series.faults[code] = series.faults.get(code, 0) + 1

    def _series(self, record: Record) -> Series:
        caller, target = record.caller, record.target
        project = caller.project if caller else NONE
        if target is None:
            series = self._projects.get(project)
            if series is not None:
                return series
            if len(self._projects) >= self._max_series:
                return self._overflow
            return self._projects.setdefault(project, Series((project, NONE, "")))
        adapter = target.adapter or (EMBEDDER if target.embeds else BASE)
        labels = (project, adapter, str(target.version) if target.version else "")
        series = self._targets.get(labels)
        if series is not None:
            return series
        if len(self._targets) >= self._max_series and not self._evict_deleted():
            return self._overflow
        return self._targets.setdefault(labels, Series(labels, target.digest, target.counted_as))

    def _evict_deleted(self) -> bool:
        self._until_sweep -= 1
        if self._until_sweep >= 0:
            return False
        self._until_sweep = SWEEP_AFTER
        for labels in list(self._targets):
            if not self._exists(labels):
                del self._targets[labels]
        return len(self._targets) < self._max_series

    def _exists(self, labels: Labels) -> bool:
        """Whether it is the base, the embedder, or a version that is not deleted."""
        project, adapter, version = labels
        entry = self._catalog.snapshot.adapters.get((project, adapter))
        return adapter in (BASE, EMBEDDER) or (entry is not None and int(version) in entry.versions)

    def targets(self) -> list[tuple[Labels, str | None]]:
        """The versions that have series and are not deleted, with their digests; the base and versions without weights
        have none."""
        return [(series.labels, series.digest) for series in self._targets.values() if self._exists(series.labels)]

    def flows(self) -> list[tuple[Labels, str | None]]:
        """The versions that have series and are not deleted, with what the admission queue counts them under; None: the
        base. The embedder is not among them: it has a queue of its own."""
        shown = (series for series in self._targets.values() if series.labels[1] != EMBEDDER)
        return [(series.labels, series.flow) for series in shown if self._exists(series.labels)]

    def families(self) -> Iterator[Family]:
        """Everything counted, one metric after another, each in parts of PART series.

        Requests may be counted between two parts: each part is read in one go.
        """
        all_series = [*self._targets.values(), *self._projects.values(), self._overflow]
        chunks = [all_series[start : start + SERIES_PER_CHUNK] for start in range(0, len(all_series), SERIES_PER_CHUNK)]
        for chunk in chunks:
            yield metrics.REQUESTS.values(
                ((*ended, *series.labels), count) for series in chunk for ended, count in series.requests.items()
            )
        yield metrics.ERRORS.values(self._errors.items())
        for chunk in chunks:
            yield metrics.FAULTS.values(
                ((*series.labels, code), count) for series in chunk for code, count in series.faults.items()
            )
        for metric, count_of in _COUNTS:
            for chunk in chunks:
                yield metric.values((series.labels, count_of(series)) for series in chunk if series.prompt)
        for chunk in chunks:  # also of requests that ended before the engine counted a token
            yield metrics.ENGINE_S.values((series.labels, series.engine_s) for series in chunk if series.engine_s)
        for metric, histogram_of in _HISTOGRAMS:
            for chunk in chunks:
                rows = ((series.labels, histogram_of(series)) for series in chunk)
                yield metric.histograms((labels, counted) for labels, counted in rows if counted is not None)
        yield metrics.DURATION.histograms(((route,), counted) for route, counted in self._durations.items())


_COUNTS: Final[tuple[tuple[Metric, Callable[[Series], int]], ...]] = (
    (metrics.PROMPT_TOKENS, lambda series: series.prompt),
    (metrics.CACHED_TOKENS, lambda series: series.cached),
    (metrics.COMPLETION_TOKENS, lambda series: series.completion),
)
_HISTOGRAMS: Final[tuple[tuple[Metric, Callable[[Series], Histogram | None]], ...]] = (
    (metrics.FIRST_TOKEN, lambda series: series.first_token),
    (metrics.INTER_TOKEN, lambda series: series.inter_token),
    (metrics.QUEUE, lambda series: series.queue),
)
