"""Engine metrics: its state as seen by the gateway, and a selection of vLLM's own metrics.

Prometheus cannot scrape the engine, which listens on a Unix socket of ours: so the gateway asks and shows them under
names of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from service.engine.watched import EngineState
from service.errors import HatrackError
from service.telemetry import metrics
from service.telemetry.metrics import Metric

STATES: Final = ("starting", "ready", "stalled", "down")
ENGINE_TIMEOUT_S: Final = 1.0

FORWARDED: Final[dict[str, Metric]] = {
    "vllm:num_requests_running": metrics.ENGINE_RUNNING,
    "vllm:num_requests_waiting": metrics.ENGINE_WAITING,
    "vllm:kv_cache_usage_perc": metrics.ENGINE_KV,
    "vllm:num_preemptions_total": metrics.ENGINE_PREEMPTIONS,
    "vllm:prompt_tokens_total": metrics.ENGINE_PROMPT,
    "vllm:generation_tokens_total": metrics.ENGINE_GENERATION,
    "vllm:corrupted_requests_total": metrics.ENGINE_CORRUPTED,
    "vllm:prefix_cache_queries_total": metrics.ENGINE_CACHE_QUERIES,
    "vllm:prefix_cache_hits_total": metrics.ENGINE_CACHE_HITS,
}
"""vLLM's samples and the metrics they are exposed as; values of several engine cores are summed."""


class MetricsClient(Protocol):
    """Fetches the engine's own metrics."""

    async def get_text(self, path: str, *, timeout_s: float) -> str:
        """The text at ``path``. Raises HatrackError if it cannot be fetched."""


class EngineStatus(Protocol):
    """The engine's state, and notifications when it changes."""

    @property
    def state(self) -> EngineState:
        """The current state."""

    @property
    def is_placed(self) -> bool:
        """Whether it is known where the engine runs."""

    def on_change(self, listener: Callable[[EngineState], None]) -> None:
        """Register a listener for changes of state."""


class EngineSource:
    """Engine state, restarts, limits and vLLM's own numbers.

    Args:
        engine: Its state is exposed, and its changes are counted.
        client: Asked for vLLM's metrics while the engine should answer.
        slots: Adapters in one batch.
        resident_limit: Adapters in the engine's memory.
    """

    name = "engine"

    def __init__(self, engine: EngineStatus, client: MetricsClient, *, slots: int, resident_limit: int) -> None:
        self._engine = engine
        self._client = client
        self._slots = slots
        self._resident_limit = resident_limit
        self._restarts = 0
        self._errors = 0
        self._starting_since: float | None = None
        self._start_s: float | None = None
        self._was_lost = False
        engine.on_change(self._changed)

    def _changed(self, state: EngineState) -> None:
        if state.name == "starting":
            self._starting_since = time.monotonic()
            self._restarts += self._was_lost
            self._was_lost = False
        elif state.name == "down":
            self._was_lost = True
        elif state.name == "ready" and self._starting_since is not None:
            self._start_s = time.monotonic() - self._starting_since
            self._starting_since = None

    async def families(self) -> Iterator[Family]:
        """All engine metrics; vLLM's own are missing if it does not answer within a second."""
        engine_metrics = await self._vllm() if self._engine.state.name in ("ready", "stalled") else {}
        return self._families(engine_metrics)

    def _families(self, engine_metrics: dict[Metric, float]) -> Iterator[Family]:
        state = self._engine.state
        yield metrics.ENGINE_STATE.values(((name,), float(name == state.name)) for name in STATES)
        yield metrics.ENGINE_STATE_SINCE.value(state.since)
        yield metrics.ENGINE_PLACED.value(float(self._engine.is_placed))
        yield metrics.ENGINE_RESTARTS.value(self._restarts)
        yield metrics.ENGINE_SLOTS.value(self._slots)
        yield metrics.ENGINE_RESIDENT_LIMIT.value(self._resident_limit)
        yield metrics.ENGINE_SCRAPE_ERRORS.value(self._errors)
        if self._start_s is not None:
            yield metrics.ENGINE_START.value(self._start_s)
        for metric, value in engine_metrics.items():
            yield metric.value(value)

    async def _vllm(self) -> dict[Metric, float]:
        try:
            return forwarded_metrics(await self._client.get_text("/metrics", timeout_s=ENGINE_TIMEOUT_S))
        except (HatrackError, ValueError):  # no answer, or one that is not Prometheus' text
            self._errors += 1
            return {}


def forwarded_metrics(text: str) -> dict[Metric, float]:
    """The metrics that are passed on, from vLLM's text. Raises ValueError if it is malformed."""
    lines = "\n".join(line for line in text.splitlines() if line.startswith(tuple(FORWARDED)))
    totals: dict[Metric, float] = {}
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            metric = FORWARDED.get(sample.name)
            if metric is not None:
                totals[metric] = totals.get(metric, 0.0) + sample.value
    return totals
