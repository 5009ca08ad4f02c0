"""Numbers for `hatrack top`: what `/metrics` said over the last seconds, made into rates, quantiles and a frame."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from service.client import ClientError

WINDOW_S: Final = 30.0
MAX_SCRAPES: Final = 64
PSEUDO_ADAPTERS: Final = ("(base)", "(embedder)", "(other)")
"""What is counted beside adapters: the base, the embedder, and what exceeds the maximum number of series."""
Labels = frozenset[tuple[str, str]]
Samples = Mapping[str, Mapping[Labels, float]]


@dataclass(frozen=True, slots=True)
class AdapterStats:
    """One adapter version. Rates are per second, times in seconds; None: nothing was observed."""

    project: str
    adapter: str
    version: str
    requests_per_s: float
    failed_per_s: float
    tokens_per_s: float
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    waiting: int
    running: int
    loaded: bool | None


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that `hatrack top` shows at a time. Rates are per second over ``window_s``; None: unknown.

    Of several engines ``engine`` is `ready` if all are, else how many are; ``engine_for_s`` is the time since the last
    change of any, ``kv_cache_ratio`` that of the fullest, and everything else their sum.
    """

    window_s: float
    version: str
    base: str
    engine: str
    engine_for_s: float | None
    engine_restarts: int
    requests_per_s: float
    refused_per_s: float
    failed_per_s: float
    tokens_read_per_s: float
    tokens_written_per_s: float
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    in_flight: int
    queued: int | None
    queue_limit: int | None
    in_engine: int | None
    width: int | None
    slots_in_use: int | None
    slots: int | None
    adapters_waiting: int | None
    resident: int | None
    resident_limit: int | None
    cold_loads_per_s: float | None
    kv_cache_ratio: float | None
    limits_hit_per_s: float
    errors: dict[str, float]
    adapters: tuple[AdapterStats, ...]


def parse(text: str) -> Samples:
    """The samples of a text in the Prometheus format, by name and labels.

    Raises:
        ClientError: It is not Prometheus' text, or not of a gateway.
    """
    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    except ValueError as error:
        raise ClientError(200, "not_hatrack", "/metrics is not in the Prometheus text format.") from error
    if "hatrack_build_info" not in samples:
        raise ClientError(200, "not_hatrack", "/metrics does not belong to a Hatrack gateway.")
    return samples


class ScrapeWindow:
    """The scrapes of the last WINDOW_S seconds, over which rates and quantiles are computed."""

    def __init__(self) -> None:
        self._scrapes: deque[tuple[float, Samples]] = deque(maxlen=MAX_SCRAPES)

    def add(self, samples: Samples, at: float | None = None) -> None:
        """Add a scrape; ``at`` is seconds on a monotonic clock."""
        now = time.monotonic() if at is None else at
        self._scrapes.append((now, samples))
        while len(self._scrapes) > 2 and now - self._scrapes[0][0] > WINDOW_S:
            self._scrapes.popleft()

    @property
    def seconds(self) -> float:
        """Time between the first and the last scrape, s."""
        return self._scrapes[-1][0] - self._scrapes[0][0]

    def now(self, name: str, **labels: str) -> float | None:
        """The sum of the latest values with these labels; None if there are none."""
        values = [value for _, value in _matching(self._scrapes[-1][1], name, labels)]
        return sum(values) if values else None

    def largest(self, name: str) -> float | None:
        """The largest of the latest values; None if there are none."""
        return max(self._scrapes[-1][1].get(name, {}).values(), default=None)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The label sets of a metric in the latest scrape."""
        return [dict(labels) for labels in self._scrapes[-1][1].get(name, {})]

    def increase(self, name: str, **labels: str) -> float:
        """By how much the counters with these labels have grown; a counter that decreased has restarted at 0."""
        before = self._scrapes[0][1].get(name, {})
        total = 0.0
        for key, value in _matching(self._scrapes[-1][1], name, labels):
            since = before.get(key, 0.0)
            total += value - since if value >= since else value
        return total

    def rate(self, name: str, **labels: str) -> float:
        """The counters' growth per second; 0 if there is only one scrape."""
        return self.increase(name, **labels) / self.seconds if self.seconds > 0 else 0.0

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """Prometheus' histogram_quantile over the window, linear within a bucket; None if nothing was observed."""
        bounds = sorted(
            {float(dict(key)["le"]) for key, _ in _matching(self._scrapes[-1][1], f"{name}_bucket", labels)}
        )
        counts = [self._bucket(name, bound, labels) for bound in bounds]
        if not counts or counts[-1] <= 0:
            return None
        rank = share * counts[-1]
        index = next(i for i, count in enumerate(counts) if count >= rank)
        lower, below = (bounds[index - 1], counts[index - 1]) if index else (0.0, 0.0)
        if bounds[index] == inf:
            return lower
        inside = counts[index] - below
        return lower + (bounds[index] - lower) * ((rank - below) / inside if inside else 1.0)

    def _bucket(self, name: str, bound: float, labels: dict[str, str]) -> float:
        return self.increase(f"{name}_bucket", le="+Inf" if bound == inf else str(bound), **labels)


def _matching(samples: Samples, name: str, labels: dict[str, str]) -> Iterator[tuple[Labels, float]]:
    required = labels.items()
    for key, value in samples.get(name, {}).items():
        if required <= set(key):
            yield key, value


def read_frame(window: ScrapeWindow) -> Frame:
    """The values to show, computed from the window."""
    build = (window.labels("hatrack_build_info") or [{}])[0]
    since = window.largest("hatrack_engine_state_since_timestamp_seconds")
    codes = {row["code"] for row in window.labels("hatrack_errors_total")}
    errors = {code: window.rate("hatrack_errors_total", code=code) for code in codes}
    first = "hatrack_time_to_first_token_seconds"
    return Frame(
        window_s=window.seconds,
        version=build.get("version", "?"),
        base=build.get("base", "?"),
        engine=_engine_state(window),
        engine_for_s=None if since is None else max(0.0, time.time() - since),
        engine_restarts=int(window.now("hatrack_engine_restarts_total") or 0),
        requests_per_s=window.rate("hatrack_requests_total"),
        refused_per_s=window.rate("hatrack_requests_total", outcome="refused"),
        failed_per_s=_failed(window),
        tokens_read_per_s=window.rate("hatrack_prompt_tokens_total"),
        tokens_written_per_s=window.rate("hatrack_completion_tokens_total"),
        first_token_p50_s=window.quantile(0.5, first),
        first_token_p99_s=window.quantile(0.99, first),
        in_flight=int(window.now("hatrack_requests_in_flight") or 0),
        queued=_latest_int(window, "hatrack_admission_queued"),
        queue_limit=_latest_int(window, "hatrack_admission_queue_limit"),
        in_engine=_latest_int(window, "hatrack_admission_in_engine"),
        width=_latest_int(window, "hatrack_admission_width"),
        slots_in_use=_latest_int(window, "hatrack_engine_slots_in_use"),
        slots=_latest_int(window, "hatrack_engine_slots"),
        adapters_waiting=_latest_int(window, "hatrack_admission_adapters_waiting"),
        resident=_latest_int(window, "hatrack_engine_resident_adapters"),
        resident_limit=_latest_int(window, "hatrack_engine_resident_limit"),
        cold_loads_per_s=window.rate("hatrack_engine_cold_loads_total"),
        kv_cache_ratio=window.largest("hatrack_engine_kv_cache_usage_ratio"),
        limits_hit_per_s=window.rate("hatrack_limit_hits_total"),
        errors=dict(sorted(((code, rate) for code, rate in errors.items() if rate), key=lambda item: -item[1])),
        adapters=_adapters(window),
    )


def _engine_state(window: ScrapeWindow) -> str:
    name = "hatrack_engine_state"
    states = [row["state"] for row in window.labels(name) if window.now(name, **row)]
    if len(set(states)) <= 1:
        return states[0] if states else "?"
    return f"{states.count('ready')} of {len(states)} ready"


def _adapters(window: ScrapeWindow) -> tuple[AdapterStats, ...]:
    """The busiest first, then by name. Counters of a deleted version stay, but its gauges go, and its row with them."""
    existing = {_version_of(row) for row in window.labels("hatrack_adapter_requests_running")}
    counted = {_version_of(row) for row in window.labels("hatrack_requests_total")}
    rows = {row for row in counted if row in existing or row[1] in PSEUDO_ADAPTERS}
    adapters = [_adapter(window, *row) for row in rows]
    return tuple(
        sorted(
            adapters, key=lambda adapter: (-adapter.requests_per_s, adapter.project, adapter.adapter, adapter.version)
        )
    )


def _version_of(labels: Mapping[str, str]) -> tuple[str, str, str]:
    return labels["project"], labels["adapter"], labels["version"]


def _adapter(window: ScrapeWindow, project: str, adapter: str, version: str) -> AdapterStats:
    labels = {"project": project, "adapter": adapter, "version": version}
    first = "hatrack_time_to_first_token_seconds"
    loaded = window.now("hatrack_adapter_resident", **labels)
    return AdapterStats(
        project=project,
        adapter=adapter,
        version=version,
        requests_per_s=window.rate("hatrack_requests_total", **labels),
        failed_per_s=_failed(window, **labels),
        tokens_per_s=window.rate("hatrack_completion_tokens_total", **labels),
        first_token_p50_s=window.quantile(0.5, first, **labels),
        first_token_p99_s=window.quantile(0.99, first, **labels),
        waiting=int(window.now("hatrack_adapter_requests_queued", **labels) or 0),
        running=int(window.now("hatrack_adapter_requests_running", **labels) or 0),
        loaded=None if loaded is None else loaded > 0,
    )


def _failed(window: ScrapeWindow, **labels: str) -> float:
    return sum(window.rate("hatrack_requests_total", outcome=outcome, **labels) for outcome in ("failed", "cut"))


def _latest_int(window: ScrapeWindow, name: str) -> int | None:
    value = window.now(name)
    return None if value is None else int(value)
