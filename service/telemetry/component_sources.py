"""Metrics sources of the components around the data path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

from prometheus_client.metrics_core import Metric as Family

from service.access.limits import KeyLimiter
from service.grounding.counts import GroundingCounts
from service.objects.cache import LocalCache
from service.registry.service import Registry
from service.registry.verdicts import Verdicts
from service.structured.checker import StructuredOutputs
from service.telemetry import metrics


class Trainer(Protocol):
    """The trainer's status."""

    @property
    def state(self) -> Literal["off", "starting", "up", "down"]:
        """Whether there is one, and whether it answers."""

    @property
    def paused_s(self) -> float | None:
        """How long its jobs were paused for live traffic, s; None: unknown."""

    @property
    def webhook(self) -> Mapping[str, int]:
        """Events of the operator's webhook by `delivered`, `failed` and `waiting`; empty if there is none."""


class LimitsSource:
    """Metrics of requests refused by keys' limits."""

    name = "limits"

    def __init__(self, limits: KeyLimiter) -> None:
        self._limits = limits

    async def families(self) -> Iterator[Family]:
        """Number of refusals by limit."""
        return iter([metrics.LIMIT_HITS.values(((name,), count) for name, count in self._limits.refused.items())])


class RegistrySource:
    """Metrics of adapters and versions, over all projects."""

    name = "registry"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def families(self) -> Iterator[Family]:
        """The registry's counts as of its last change."""
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


class VerdictsSource:
    """Metrics of versions by the state of their verdicts, over all projects."""

    name = "verdicts"

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    async def families(self) -> Iterator[Family]:
        """Numbers of fresh, due and failed versions, and of failed ones that are live."""
        summary = await self._verdicts.standing()
        return iter(
            [
                metrics.VERSIONS_REVALIDATION.values(
                    ((state.value,), count) for state, count in summary.states.items()
                ),
                metrics.LIVE_FAILED.value(summary.live_failed),
            ]
        )


class TrainerSource:
    """Metrics of the trainer: whether it answers, how long it was paused for live traffic, and of its webhook."""

    name = "trainer"

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    async def families(self) -> Iterator[Family]:
        """None if the trainer is off; without the pauses while they are unknown, and the webhook if there is none."""
        state, paused_s = self._trainer.state, self._trainer.paused_s
        families = [] if state == "off" else [metrics.TRAINER_UP.value(state == "up")]
        if paused_s is not None:
            families.append(metrics.TRAINER_PAUSED.value(paused_s))
        if webhook := self._trainer.webhook:
            ended = (((outcome,), webhook[outcome]) for outcome in ("delivered", "failed"))
            families.append(metrics.TRAINER_WEBHOOK.values(ended))
            families.append(metrics.TRAINER_WEBHOOK_WAITING.value(webhook["waiting"]))
        return iter(families)


class StructuredSource:
    """Metrics of the checks of structured outputs, over all bases."""

    name = "structured"

    def __init__(self, structured: Sequence[StructuredOutputs]) -> None:
        self._structured = structured

    async def families(self) -> Iterator[Family]:
        """Checks by outcome, CPU time of trials, and the state of the trial process."""
        outcomes: Counter[str] = Counter()
        for each in self._structured:
            outcomes.update(each.counts.outcomes)
        families = [
            metrics.STRUCTURED.values(((outcome,), count) for outcome, count in outcomes.items()),
            metrics.STRUCTURED_CPU.value(sum(each.counts.cpu_s for each in self._structured)),
        ]
        states = [each.trial_state for each in self._structured if each.trial_state != "off"]
        if states:
            families.append(metrics.STRUCTURED_UP.value(all(state == "ready" for state in states)))
        return iter(families)


class GroundingSource:
    """Metrics of retrievals for inference requests."""

    name = "grounding"

    def __init__(self, counts: GroundingCounts) -> None:
        self._counts = counts

    async def families(self) -> Iterator[Family]:
        """Retrievals by outcome, their durations, and the numbers of used and unusable passages."""
        counts = self._counts
        return iter(
            [
                metrics.GROUNDING.values(counts.outcomes.items()),
                metrics.GROUNDING_S.histograms(((name,), histogram) for name, histogram in counts.seconds.items()),
                metrics.GROUNDING_PASSAGES.values(((name,), count) for name, count in counts.passages.items()),
                metrics.GROUNDING_UNUSABLE.values(((name,), count) for name, count in counts.unusable.items()),
            ]
        )


class ObjectsSource:
    """Metrics of the object store and of the local copies of its objects."""

    name = "objects"

    def __init__(self, cache: LocalCache | None) -> None:
        self._cache = cache

    async def families(self) -> Iterator[Family]:
        """Fetches by kind of object, and what the copies take; none without an object store."""
        cache = self._cache
        if cache is None:
            return iter(())
        kinds = cache.kinds
        return iter(
            [
                metrics.OBJECT_FETCHES.values(
                    ((each.kind, outcome), count) for each in kinds for outcome, count in each.counts.outcomes.items()
                ),
                metrics.OBJECT_FETCHED_BYTES.values(((each.kind,), each.counts.bytes) for each in kinds),
                metrics.OBJECT_FETCH_S.histograms(((each.kind,), each.counts.seconds) for each in kinds),
                metrics.OBJECT_CACHE_BYTES.values(((each.kind,), each.bytes) for each in kinds),
                metrics.OBJECT_CACHE_LIMIT.value(cache.max_bytes),
                metrics.OBJECT_EVICTIONS.values(((each.kind,), each.counts.evicted) for each in kinds),
            ]
        )
