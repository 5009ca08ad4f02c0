"""All metrics of `/metrics`: names, types, labels and descriptions.

`service/telemetry/METRICS.md` documents the same list; a test compares the two. Names follow Prometheus' conventions:
base units (seconds, ratios between 0 and 1), counters end in `_total`.
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
from service.objects.cache import FETCH_S

Kind = Literal["counter", "gauge", "histogram"]

FIRST_TOKEN_S: Final = (0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
GAP_S: Final = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
WAIT_S: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
TOTAL_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LAG_S: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric's declaration; ``bounds`` are a histogram's upper bounds in the metric's unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def values(self, rows: Iterable[tuple[Sequence[str], float]]) -> Family:
        """The counter or gauge with one sample per tuple of label values."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = make(self.name, self.help, labels=self.labels)
        for labels, value in rows:
            family.add_metric(labels, value)
        return family

    def value(self, value: float) -> Family:
        """The counter or gauge without labels."""
        return self.values([((), value)])

    def histograms(self, rows: Iterable[tuple[Sequence[str], Histogram]]) -> Family:
        """The histogram with one set of buckets per tuple of label values."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        bounds = [*map(str, self.bounds), "+Inf"]
        for labels, histogram in rows:
            family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum)
        return family


_TARGET: Final = ("project", "adapter", "version")

# requests
REQUESTS: Final = Metric(
    "hatrack_requests_total",
    "counter",
    "Finished inference requests by outcome: ok, refused (4xx), failed (5xx), cut (failed after the response had "
    "started), left (the client disconnected).",
    ("route", "outcome", *_TARGET),
)
ERRORS: Final = Metric("hatrack_errors_total", "counter", "Failed inference requests by error code.", ("route", "code"))
FAULTS: Final = Metric(
    "hatrack_adapter_faults_total",
    "counter",
    "Requests that failed because of a faulty adapter or engine: adapter_not_finite, adapter_unloadable, "
    "engine_not_finite.",
    (*_TARGET, "code"),
)
IN_FLIGHT: Final = Metric("hatrack_requests_in_flight", "gauge", "Inference requests in progress in the gateway.")
FIRST_TOKEN: Final = Metric(
    "hatrack_time_to_first_token_seconds",
    "histogram",
    "Time from a streaming request's arrival to its first event.",
    _TARGET,
    FIRST_TOKEN_S,
)
INTER_TOKEN: Final = Metric(
    "hatrack_inter_token_seconds",
    "histogram",
    "Time between two token events of a streamed response.",
    _TARGET,
    GAP_S,
)
QUEUE: Final = Metric(
    "hatrack_queue_seconds", "histogram", "Time that a request waited in the queue for the engine.", _TARGET, WAIT_S
)
DURATION: Final = Metric(
    "hatrack_request_duration_seconds",
    "histogram",
    "Time from a request's arrival to its end, whatever the outcome.",
    ("route",),
    TOTAL_S,
)
PROMPT_TOKENS: Final = Metric(
    "hatrack_prompt_tokens_total", "counter", "Prompt tokens, including cached ones.", _TARGET
)
CACHED_TOKENS: Final = Metric(
    "hatrack_cached_prompt_tokens_total", "counter", "Prompt tokens served from the engine's prefix cache.", _TARGET
)
COMPLETION_TOKENS: Final = Metric("hatrack_completion_tokens_total", "counter", "Completion tokens.", _TARGET)
ENGINE_S: Final = Metric(
    "hatrack_engine_seconds_total",
    "counter",
    "The engine's time, shared equally among the requests in it, as in /v1/costs; proofs and warming are left out.",
    _TARGET,
)

# the engine, as the gateway sees it
ENGINE_STATE: Final = Metric(
    "hatrack_engine_state", "gauge", "1 for the engine's state: starting, ready, stalled or down.", ("state",)
)
ENGINE_STATE_SINCE: Final = Metric(
    "hatrack_engine_state_since_timestamp_seconds", "gauge", "Unix time at which the engine entered its state."
)
ENGINE_PLACED: Final = Metric(
    "hatrack_engine_placed", "gauge", "1 if it is known where the engine runs; 0: no agent has announced itself as it."
)
ENGINE_RESTARTS: Final = Metric(
    "hatrack_engine_restarts_total", "counter", "Restarts of the engine after it was lost or given up."
)
ENGINE_START: Final = Metric(
    "hatrack_engine_start_seconds", "gauge", "Duration of the engine's latest start, until it was ready."
)
ENGINE_SLOTS: Final = Metric("hatrack_engine_slots", "gauge", "Maximum number of adapters in one batch.")
ENGINE_RESIDENT_LIMIT: Final = Metric(
    "hatrack_engine_resident_limit", "gauge", "Maximum number of adapters in the engine's memory."
)
ENGINE_RESIDENT: Final = Metric(
    "hatrack_engine_resident_adapters", "gauge", "Adapters (digests) in the engine's memory, in use or not."
)
SLOTS_IN_USE: Final = Metric(
    "hatrack_engine_slots_in_use", "gauge", "Slots whose adapter has requests in the engine, as counted by admission."
)
ADAPTER_RESIDENT: Final = Metric(
    "hatrack_adapter_resident",
    "gauge",
    "1 for a version in the engine's memory, otherwise 0.",
    _TARGET,
)
ADAPTER_RUNNING: Final = Metric(
    "hatrack_adapter_requests_running", "gauge", "A version's requests in the engine.", _TARGET
)
ADAPTER_QUEUED: Final = Metric(
    "hatrack_adapter_requests_queued", "gauge", "A version's requests that are queued for the engine.", _TARGET
)
COLD_LOADS: Final = Metric(
    "hatrack_engine_cold_loads_total", "counter", "Requests whose adapter had to be loaded from disk."
)
COLD_LOAD_S: Final = Metric(
    "hatrack_engine_cold_load_seconds_total",
    "counter",
    "Total time of these loads, from the request's admission to its first token.",
)
ENGINE_SCRAPE_ERRORS: Final = Metric(
    "hatrack_engine_scrape_errors_total", "counter", "Failed scrapes of the engine's own metrics."
)

# the engine's own metrics
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
QUEUED: Final = Metric("hatrack_admission_queued", "gauge", "Requests that are queued for the engine.", ("class",))
QUEUE_LIMIT: Final = Metric("hatrack_admission_queue_limit", "gauge", "Maximum number of queued requests.")
ADMITTED: Final = Metric(
    "hatrack_admission_in_engine", "gauge", "Admitted requests that have not left the engine.", ("class",)
)
WIDTH: Final = Metric("hatrack_admission_width", "gauge", "Maximum number of concurrent requests in the engine.")
SLOT_WAITERS: Final = Metric("hatrack_admission_adapters_waiting", "gauge", "Adapters that are waiting for a slot.")
GRANTED: Final = Metric("hatrack_admission_granted_total", "counter", "Requests admitted to the engine.", ("class",))
QUEUE_REFUSED: Final = Metric(
    "hatrack_admission_refused_total",
    "counter",
    "Requests rejected by admission, by reason: queue_full, share_full (the caller's share of the queue), timeout.",
    ("reason",),
)

# access
LIMIT_HITS: Final = Metric(
    "hatrack_limit_hits_total", "counter", "Requests refused because of a key's limit, by limit.", ("limit",)
)
USAGE_ROWS: Final = Metric("hatrack_usage_rows_written_total", "counter", "Usage rows written to the database.")
USAGE_PENDING: Final = Metric("hatrack_usage_rows_pending", "gauge", "Usage rows not yet written.")
USAGE_ERRORS: Final = Metric("hatrack_usage_write_errors_total", "counter", "Failed writes of usage.")

# batches
BATCHES: Final = Metric("hatrack_batches", "gauge", "Batches that have not ended, by status.", ("status",))
BATCH_IN_FLIGHT: Final = Metric(
    "hatrack_batch_requests_in_flight", "gauge", "Requests of batches that are being answered, the queue included."
)
BATCH_ANSWERED: Final = Metric(
    "hatrack_batch_requests_total",
    "counter",
    "Answered requests of batches: with 200 (completed), or otherwise (failed).",
    ("result",),
)

# the registry
REGISTRY_ADAPTERS: Final = Metric("hatrack_registry_adapters", "gauge", "Adapters with a ready version.")
REGISTRY_VERSIONS: Final = Metric(
    "hatrack_registry_versions",
    "gauge",
    "Versions by state (proving, ready, rejected) and, for ready ones, whether they can serve now.",
    ("state", "servable"),
)

REGISTRY_PINS: Final = Metric("hatrack_registry_pins", "gauge", "Adapters whose live version is kept warm.")
REGISTRY_SPLITS: Final = Metric(
    "hatrack_registry_splits", "gauge", "Aliases that split their requests between versions."
)
VERSIONS_REVALIDATION: Final = Metric(
    "hatrack_versions_revalidation",
    "gauge",
    "Ready versions with a verdict that fit the base, by the state of the verdict: fresh, due, failed.",
    ("state",),
)
LIVE_FAILED: Final = Metric(
    "hatrack_live_versions_failed",
    "gauge",
    "Live versions that failed their latest revalidation.",
)

# the trainer
TRAINER_UP: Final = Metric(
    "hatrack_trainer_up", "gauge", "1 if the trainer answers, otherwise 0; missing if no trainer is configured."
)
TRAINER_PAUSED: Final = Metric(
    "hatrack_trainer_paused_seconds_total",
    "counter",
    "Total time that training jobs were paused for live traffic, as reported by the trainer.",
)

TRAINER_WEBHOOK: Final = Metric(
    "hatrack_trainer_webhook_events_total",
    "counter",
    "Events of the operator's webhook that were delivered or given up, by outcome: delivered, failed.",
    ("outcome",),
)
TRAINER_WEBHOOK_WAITING: Final = Metric(
    "hatrack_trainer_webhook_waiting", "gauge", "Events that the operator's webhook has yet to be told."
)

# structured outputs
STRUCTURED: Final = Metric(
    "hatrack_structured_outputs_total",
    "counter",
    "Schemas, grammars and other structured outputs in requests, by the outcome of their check: passed, refused; also "
    "untried, if only the stricter static bound was applied.",
    ("outcome",),
)
STRUCTURED_CPU: Final = Metric(
    "hatrack_structured_cpu_seconds_total", "counter", "CPU time of trial compilations of structured outputs."
)
STRUCTURED_UP: Final = Metric(
    "hatrack_structured_trial_up",
    "gauge",
    "1 if the process for trial compilations runs, otherwise 0; missing if none is configured.",
)

# grounding
GROUNDING: Final = Metric(
    "hatrack_grounding_requests_total",
    "counter",
    "Retrievals for inference requests, by outcome: ok, empty (nothing found), no_room (no space left in the context), "
    "late, broken.",
    ("provider", "outcome"),
)
GROUNDING_S: Final = Metric(
    "hatrack_grounding_seconds", "histogram", "Duration of a retrieval.", ("provider",), RETRIEVAL_S
)
GROUNDING_PASSAGES: Final = Metric(
    "hatrack_grounding_passages_total", "counter", "Passages inserted into prompts.", ("provider",)
)
GROUNDING_UNUSABLE: Final = Metric(
    "hatrack_grounding_unusable_passages_total",
    "counter",
    "Passages from a provider that were dropped because they were too long or malformed.",
    ("provider",),
)

# the object store
_KIND: Final = ("kind",)
OBJECT_FETCHES: Final = Metric(
    "hatrack_object_fetches_total",
    "counter",
    "Fetches from the object store, by outcome: fetched, failed (missing, damaged or refused), away (it did not "
    "answer).",
    ("kind", "outcome"),
)
OBJECT_FETCHED_BYTES: Final = Metric("hatrack_object_fetched_bytes_total", "counter", "Fetched bytes.", _KIND)
OBJECT_FETCH_S: Final = Metric(
    "hatrack_object_fetch_seconds", "histogram", "Duration of a fetch that brought the object.", _KIND, FETCH_S
)
OBJECT_CACHE_BYTES: Final = Metric("hatrack_object_cache_bytes", "gauge", "Bytes of local copies.", _KIND)
OBJECT_CACHE_LIMIT: Final = Metric(
    "hatrack_object_cache_limit_bytes", "gauge", "Bytes that all local copies may take (HATRACK_STORE_CACHE_GIB)."
)
OBJECT_EVICTIONS: Final = Metric(
    "hatrack_object_evictions_total", "counter", "Local copies that were removed to keep that limit.", _KIND
)

# the gateway itself
FRONTS: Final = Metric(
    "hatrack_fronts_connected", "gauge", "Fronts that are connected; missing if none may be (HATRACK_FRONT_KEY)."
)
FRONTS_STOPPED: Final = Metric(
    "hatrack_fronts_stopped",
    "gauge",
    "Fronts that were stopped on purpose within the last hour, and that no others have replaced.",
)
LOOP_LAG: Final = Metric(
    "hatrack_event_loop_lag_seconds",
    "histogram",
    "Delay with which the gateway's event loop wakes a sleeping task.",
    (),
    LAG_S,
)
DISK_FREE: Final = Metric("hatrack_disk_free_bytes", "gauge", "Free space on the disk of HATRACK_HOME.")
BUILD_INFO: Final = Metric(
    "hatrack_build_info", "gauge", "Always 1; the versions in use are in the labels.", ("version", "vllm", "base")
)
SOURCE_ERRORS: Final = Metric(
    "hatrack_metrics_source_errors_total",
    "counter",
    "Scrapes in which a component failed to report its metrics, which are then missing.",
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
"""prometheus-client's metrics of the gateway's process."""
