"""Every metric that `/metrics` shows: name, kind, labels and meaning, in one place.

`service/telemetry/METRICS.md` documents the same list; a test fails where the two part. Names follow Prometheus'
conventions: base units (seconds, ratios between 0 and 1), counters end in `_total`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from service.grounding.counts import RETRIEVAL_S
from service.histogram import Histogram

Kind = Literal["counter", "gauge", "histogram"]

FIRST_TOKEN_S: Final = (0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
GAP_S: Final = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
WAIT_S: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
TOTAL_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LAG_S: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric's name and meaning; ``bounds`` are a histogram's upper bounds, in its unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def values(self, rows: Iterable[tuple[Sequence[str], float]]) -> Family:
        """This counter or gauge with a value for each tuple of label values."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = make(self.name, self.help, labels=self.labels)
        for labels, value in rows:
            family.add_metric(labels, value)
        return family

    def value(self, value: float) -> Family:
        """This counter or gauge, which has no labels."""
        return self.values([((), value)])

    def histograms(self, rows: Iterable[tuple[Sequence[str], Histogram]]) -> Family:
        """This histogram with its counts for each tuple of label values."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        bounds = [*map(str, self.bounds), "+Inf"]
        for labels, counted in rows:
            family.add_metric(labels, list(zip(bounds, accumulate(counted.counts), strict=True)), counted.sum)
        return family


_TARGET: Final = ("project", "adapter", "version")

# requests
REQUESTS: Final = Metric(
    "hatrack_requests_total",
    "counter",
    "Inference requests that are over, by how they ended: ok, refused (4xx), failed (5xx), cut (broken after the "
    "answer had begun), left (the client went away).",
    ("route", "outcome", *_TARGET),
)
ERRORS: Final = Metric(
    "hatrack_errors_total", "counter", "Inference requests that did not end well, by error code.", ("route", "code")
)
FAULTS: Final = Metric(
    "hatrack_adapter_faults_total",
    "counter",
    "Requests that the engine could not answer because of the adapter or of itself: adapter_not_finite, "
    "adapter_unloadable, engine_not_finite.",
    (*_TARGET, "code"),
)
IN_FLIGHT: Final = Metric("hatrack_requests_in_flight", "gauge", "Inference requests that the gateway works on now.")
FIRST_TOKEN: Final = Metric(
    "hatrack_time_to_first_token_seconds",
    "histogram",
    "From a streaming request's arrival to its first event.",
    _TARGET,
    FIRST_TOKEN_S,
)
INTER_TOKEN: Final = Metric(
    "hatrack_inter_token_seconds",
    "histogram",
    "Between two events of a streamed answer that bring tokens.",
    _TARGET,
    GAP_S,
)
QUEUE: Final = Metric(
    "hatrack_queue_seconds", "histogram", "What a request waited for its place in the engine.", _TARGET, WAIT_S
)
DURATION: Final = Metric(
    "hatrack_request_duration_seconds",
    "histogram",
    "From a request's arrival to its end, whatever that was.",
    ("route",),
    TOTAL_S,
)
PROMPT_TOKENS: Final = Metric("hatrack_prompt_tokens_total", "counter", "Tokens read, cached ones among them.", _TARGET)
CACHED_TOKENS: Final = Metric(
    "hatrack_cached_prompt_tokens_total", "counter", "Tokens read from the engine's prefix cache.", _TARGET
)
COMPLETION_TOKENS: Final = Metric("hatrack_completion_tokens_total", "counter", "Tokens written.", _TARGET)

# the engine, as the gateway sees it
ENGINE_STATE: Final = Metric(
    "hatrack_engine_state", "gauge", "1 for the engine's state: starting, ready, stalled or down.", ("state",)
)
ENGINE_STATE_SINCE: Final = Metric(
    "hatrack_engine_state_since_timestamp_seconds", "gauge", "When the engine came into its state, Unix time."
)
ENGINE_RESTARTS: Final = Metric(
    "hatrack_engine_restarts_total", "counter", "Times that the engine was lost or given up and started anew."
)
ENGINE_START: Final = Metric(
    "hatrack_engine_start_seconds", "gauge", "What the engine's latest start took until it answered."
)
ENGINE_SLOTS: Final = Metric("hatrack_engine_slots", "gauge", "Adapters that one batch can hold.")
ENGINE_RESIDENT_LIMIT: Final = Metric(
    "hatrack_engine_resident_limit", "gauge", "Adapters that the engine's memory can hold."
)
ENGINE_RESIDENT: Final = Metric(
    "hatrack_engine_resident_adapters", "gauge", "Adapters (digests) in the engine's memory now, in use or not."
)
SLOTS_IN_USE: Final = Metric(
    "hatrack_engine_slots_in_use", "gauge", "Slots whose adapter has requests in the engine now, as admission counts."
)
ADAPTER_RESIDENT: Final = Metric(
    "hatrack_adapter_resident",
    "gauge",
    "1 for a version that lies in the engine's memory now, 0 for one that does not.",
    _TARGET,
)
ADAPTER_RUNNING: Final = Metric(
    "hatrack_adapter_requests_running", "gauge", "A version's requests in the engine.", _TARGET
)
ADAPTER_QUEUED: Final = Metric(
    "hatrack_adapter_requests_queued", "gauge", "A version's requests that wait for their place in the engine.", _TARGET
)
COLD_LOADS: Final = Metric(
    "hatrack_engine_cold_loads_total", "counter", "Times that a request had its adapter loaded from the disk."
)
COLD_LOAD_S: Final = Metric(
    "hatrack_engine_cold_load_seconds_total",
    "counter",
    "What these loads took together, from letting the request in to its first token.",
)
ENGINE_SCRAPE_ERRORS: Final = Metric(
    "hatrack_engine_scrape_errors_total", "counter", "Times that the engine's own metrics could not be had."
)

# the engine, in its own words
ENGINE_RUNNING: Final = Metric("hatrack_engine_requests_running", "gauge", "vllm:num_requests_running.")
ENGINE_WAITING: Final = Metric("hatrack_engine_requests_waiting", "gauge", "vllm:num_requests_waiting.")
ENGINE_KV: Final = Metric(
    "hatrack_engine_kv_cache_usage_ratio", "gauge", "vllm:kv_cache_usage_perc: 1 means that all blocks are in use."
)
ENGINE_PREEMPTIONS: Final = Metric("hatrack_engine_preemptions_total", "counter", "vllm:num_preemptions_total.")
ENGINE_PROMPT: Final = Metric("hatrack_engine_prompt_tokens_total", "counter", "vllm:prompt_tokens_total.")
ENGINE_GENERATION: Final = Metric("hatrack_engine_generation_tokens_total", "counter", "vllm:generation_tokens_total.")
ENGINE_CORRUPTED: Final = Metric(
    "hatrack_engine_corrupted_requests_total",
    "counter",
    "vllm:corrupted_requests_total: requests with a NaN in their logits.",
)
ENGINE_CACHE_QUERIES: Final = Metric(
    "hatrack_engine_prefix_cache_queries_total", "counter", "vllm:prefix_cache_queries_total, in tokens."
)
ENGINE_CACHE_HITS: Final = Metric(
    "hatrack_engine_prefix_cache_hits_total", "counter", "vllm:prefix_cache_hits_total, in tokens."
)

# admission
QUEUED: Final = Metric(
    "hatrack_admission_queued", "gauge", "Requests that wait for their place in the engine.", ("class",)
)
QUEUE_LIMIT: Final = Metric("hatrack_admission_queue_limit", "gauge", "Requests that may wait at once.")
ADMITTED: Final = Metric(
    "hatrack_admission_in_engine", "gauge", "Requests that were let in and have not left the engine.", ("class",)
)
WIDTH: Final = Metric("hatrack_admission_width", "gauge", "Requests that may be in the engine at once.")
SLOT_WAITERS: Final = Metric("hatrack_admission_adapters_waiting", "gauge", "Adapters that wait for a slot.")
GRANTED: Final = Metric("hatrack_admission_granted_total", "counter", "Requests let into the engine.", ("class",))
QUEUE_REFUSED: Final = Metric(
    "hatrack_admission_refused_total",
    "counter",
    "Requests that admission did not let in, by reason: queue_full, share_full (the caller's own), timeout.",
    ("reason",),
)

# access
LIMIT_HITS: Final = Metric(
    "hatrack_limit_hits_total", "counter", "Requests refused because of their key's limit, by the limit.", ("limit",)
)
USAGE_ROWS: Final = Metric("hatrack_usage_rows_written_total", "counter", "Rows of usage written to the database.")
USAGE_PENDING: Final = Metric("hatrack_usage_rows_pending", "gauge", "Rows of usage not yet written.")
USAGE_ERRORS: Final = Metric("hatrack_usage_write_errors_total", "counter", "Times that usage could not be written.")

# the registry
REGISTRY_ADAPTERS: Final = Metric("hatrack_registry_adapters", "gauge", "Adapters that have a ready version.")
REGISTRY_VERSIONS: Final = Metric(
    "hatrack_registry_versions",
    "gauge",
    "Versions by state (proving, ready, rejected) and, of the ready ones, whether they can serve now.",
    ("state", "servable"),
)

REGISTRY_PINS: Final = Metric("hatrack_registry_pins", "gauge", "Adapters whose live version is kept warm.")
REGISTRY_SPLITS: Final = Metric("hatrack_registry_splits", "gauge", "Aliases that split their requests over versions.")
VERSIONS_REVALIDATION: Final = Metric(
    "hatrack_versions_revalidation",
    "gauge",
    "Judged ready versions by what their verdict is worth now: fresh, due, failed; of those that fit the base.",
    ("state",),
)
LIVE_FAILED: Final = Metric(
    "hatrack_live_versions_failed",
    "gauge",
    "Versions that `live` answers with though their latest revalidation failed them.",
)

# the trainer
TRAINER_UP: Final = Metric(
    "hatrack_trainer_up", "gauge", "1 where the trainer answers, 0 where it does not; missing where there is none."
)
TRAINER_PAUSED: Final = Metric(
    "hatrack_trainer_paused_seconds_total",
    "counter",
    "How long all training jobs together have stood still for callers' requests, as far as the trainer has said it.",
)

# structured outputs
STRUCTURED: Final = Metric(
    "hatrack_structured_outputs_total",
    "counter",
    "Schemas, grammars and their like in requests, by how their check ended: passed, refused; untried ones were held "
    "to the stricter bound, and passed or were refused besides.",
    ("outcome",),
)
STRUCTURED_CPU: Final = Metric(
    "hatrack_structured_cpu_seconds_total", "counter", "CPU time of the trial compiles of structured outputs."
)
STRUCTURED_UP: Final = Metric(
    "hatrack_structured_trial_up",
    "gauge",
    "1 where structured outputs are compiled on trial, 0 where the process for it is not there; missing where none is "
    "wanted.",
)

# grounding
GROUNDING: Final = Metric(
    "hatrack_grounding_requests_total",
    "counter",
    "Retrievals for inference requests, by how they ended: ok, empty (nothing found), no_room (the context is full), "
    "late, broken.",
    ("provider", "outcome"),
)
GROUNDING_S: Final = Metric(
    "hatrack_grounding_seconds", "histogram", "What a retrieval took.", ("provider",), RETRIEVAL_S
)
GROUNDING_PASSAGES: Final = Metric(
    "hatrack_grounding_passages_total", "counter", "Passages put into prompts.", ("provider",)
)
GROUNDING_UNUSABLE: Final = Metric(
    "hatrack_grounding_unusable_passages_total",
    "counter",
    "Passages that a provider gave and that were left out: too long, or not well formed.",
    ("provider",),
)

# the gateway itself
LOOP_LAG: Final = Metric(
    "hatrack_event_loop_lag_seconds",
    "histogram",
    "How late the gateway's event loop wakes up a task that asked to be woken.",
    (),
    LAG_S,
)
DISK_FREE: Final = Metric("hatrack_disk_free_bytes", "gauge", "Free space of the disk under HATRACK_HOME.")
BUILD_INFO: Final = Metric("hatrack_build_info", "gauge", "Always 1; what runs here.", ("version", "vllm", "base"))
SOURCE_ERRORS: Final = Metric(
    "hatrack_metrics_source_errors_total",
    "counter",
    "Times that a part of the gateway could not say its numbers; they are missing from that scrape.",
    ("source",),
)

ALL: Final = tuple(value for value in tuple(vars().values()) if isinstance(value, Metric))

PROCESS_NAMES: Final = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)
"""prometheus-client's own, of the gateway's process."""
