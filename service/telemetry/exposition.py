"""The text of `/metrics`: asks every part of the gateway for its numbers and writes them in Prometheus' format."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric as Family

from service.telemetry import metrics

SOURCE_TIMEOUT_S: Final = 2.0
FRESH_S: Final = 1.0
"""A second scrape within this time gets the cached text, so that frequent scrapes cost nothing."""
NAMELESS: Final[Mapping[str, str]] = MappingProxyType({"project": "(all)", "adapter": "(all)", "version": ""})
"""Label values for callers without a key."""
_LOG = logging.getLogger("hatrack.metrics")


class Source(Protocol):
    """A component that provides metrics."""

    @property
    def name(self) -> str:
        """Its name in ``hatrack_metrics_source_errors_total``."""

    async def families(self) -> Iterable[Family]:
        """Its current metrics. If this raises, they are missing from this scrape."""


class Exposition:
    """Writes all metrics of a registry of its own: the sources' and prometheus-client's of the process.

    Args:
        sources: Asked at each scrape, all at once, none longer than SOURCE_TIMEOUT_S.
    """

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._sources = list(sources)
        self._families: list[Family] = []
        self._errors: dict[str, int] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)
        self._lock = asyncio.Lock()
        self._texts: dict[bool, tuple[float, bytes]] = {}

    def add(self, source: Source) -> None:
        """Add a source, from the next scrape on."""
        self._sources.append(source)

    def collect(self) -> Iterator[Family]:
        """The sources' latest metrics; implements prometheus-client's collector interface."""
        yield from self._families

    async def text(self, *, named: bool = True) -> bytes:
        """All metrics in Prometheus' text format 0.0.4, at most FRESH_S old.

        Args:
            named: Tell projects, adapters and versions apart; else they are added up, and no label names one.
        """
        async with self._lock:
            written, text = self._texts.get(named, (-FRESH_S, b""))
            if time.monotonic() - written >= FRESH_S:
                text = await self._write(named)
                self._texts[named] = (time.monotonic(), text)
            return text

    async def _write(self, named: bool) -> bytes:
        answers = await asyncio.gather(*(self._ask(source) for source in self._sources))
        self._families = [family for families in answers for family in families]
        if not named:
            self._families = await without_names(self._families)
        self._families.append(metrics.SOURCE_ERRORS.values(((name,), count) for name, count in self._errors.items()))
        lines: list[bytes] = []
        before = ""
        for family in self._registry.collect():
            text = generate_latest(_Only(family))
            if family.name == before:
                text = text.split(b"\n", 2)[2]  # a metric that comes in parts has its two lines of comment once
            lines.append(text)
            before = family.name
            await asyncio.sleep(0)  # requests go on meanwhile
        self._families = []
        return b"".join(lines)

    async def _ask(self, source: Source) -> Sequence[Family]:
        families = []
        try:
            async with asyncio.timeout(SOURCE_TIMEOUT_S):
                for family in await source.families():
                    families.append(family)
                    await asyncio.sleep(0)
        except Exception as error:  # whatever is wrong with one part, the others' numbers are wanted the more
            if source.name not in self._errors:
                _LOG.exception("a metrics source failed; later failures are only counted")
            else:
                _LOG.debug("a metrics source failed", extra={"source": source.name, "kind": type(error).__name__})
            self._errors[source.name] = self._errors.get(source.name, 0) + 1
            return ()
        return families


async def without_names(families: Iterable[Family]) -> list[Family]:
    """The families summed over projects, adapters and versions; the labels have the values of NAMELESS.

    The labels stay: a dashboard or an alert that was written for them still finds its series.
    """
    totals: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    shown: dict[str, Family] = {}
    for family in families:
        if family.name not in shown:
            shown[family.name] = Family(family.name, family.documentation, family.type)
        sums = totals.setdefault(family.name, {})
        for sample in family.samples:
            labels = tuple((label, NAMELESS.get(label, value)) for label, value in sample.labels.items())
            key = (sample.name, labels)
            sums[key] = sums.get(key, 0.0) + sample.value
        await asyncio.sleep(0)  # requests go on meanwhile
    for name, family in shown.items():
        for (sample_name, labels), value in totals[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return list(shown.values())


class _Only:
    """A registry of one metric."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        return (self._family,)


class Labelled:
    """Several components of one kind as one source: each one's samples get a label that tells them apart.

    Args:
        label: The label's name.
        sources: The components by the label's value.
    """

    def __init__(self, label: str, sources: Mapping[str, Source]) -> None:
        self._label = label
        self._sources = sources
        self.name = next(iter(sources.values())).name

    async def families(self) -> Iterable[Family]:
        """The metrics of all, each metric once."""
        merged: dict[str, Family] = {}
        for value, source in self._sources.items():
            for family in await source.families():
                into = merged.setdefault(family.name, Family(family.name, family.documentation, family.type))
                for sample in family.samples:
                    into.add_sample(sample.name, {**sample.labels, self._label: value}, sample.value)
        return list(merged.values())
