"""All of the gateway's telemetry, made from the settings and joined to the parts that it watches."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client.metrics_core import Metric as Family

from service import __version__
from service.config import Settings
from service.histogram import Histogram
from service.registry.catalog import Catalog
from service.telemetry import metrics
from service.telemetry.account import MetricsAccount
from service.telemetry.exposition import Exposition, Source
from service.telemetry.record import Account
from service.telemetry.traces import Traces, make_traces

LAG_TICK_S: Final = 0.25


class LoopLag:
    """Measures how late the event loop is, in seconds; a late loop delays every request of this process."""

    def __init__(self) -> None:
        self.histogram = Histogram(metrics.LAG_S)

    async def watch(self) -> None:
        """Measure every LAG_TICK_S seconds until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_TICK_S
            await asyncio.sleep(LAG_TICK_S)
            self.histogram.observe(max(0.0, loop.time() - due))


class Telemetry:
    """Metrics of requests and of the gateway's components, and traces if they are configured.

    Args:
        settings: Who may read, how much is told apart, where traces go.
        catalog: The adapters that exist.
        engine_version: vLLM's, for ``hatrack_build_info``.

    Raises:
        SettingsError: Traces are wanted and OpenTelemetry is not installed.
    """

    def __init__(self, settings: Settings, catalog: Catalog, engine_version: str) -> None:
        self.settings = settings
        self.account = MetricsAccount(catalog, settings.metrics_adapters)
        self.tracer: Traces | None = (
            make_traces(settings.otlp_traces, settings.otlp_ratio) if settings.otlp_traces else None
        )
        self.in_flight: Callable[[], int] = lambda: 0
        self.exposition = Exposition([AccountSource(self.account), GatewaySource(self, engine_version)])
        self.lag = LoopLag()

    def watch(self, *sources: Source) -> None:
        """Add the metrics of ``sources``."""
        for source in sources:
            self.exposition.add(source)

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Called with the record of every request: the metrics and, if there are any, the traces."""
        return (self.account,) if self.tracer is None else (self.account, self.tracer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Measure the event loop's lag while this is open; send the remaining traces on leaving."""
        watch = asyncio.create_task(self.lag.watch(), name="event-loop-lag")
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            if self.tracer is not None:
                await self.tracer.close()


class AccountSource:
    """Metrics of requests."""

    name = "requests"

    def __init__(self, account: MetricsAccount) -> None:
        self._account = account

    async def families(self) -> Iterator[Family]:
        """All metrics of requests."""
        return self._account.families()


class GatewaySource:
    """Metrics of the gateway process."""

    name = "gateway"

    def __init__(self, telemetry: Telemetry, engine_version: str) -> None:
        self._telemetry = telemetry
        self._build = (__version__, engine_version, telemetry.settings.base_served_name)

    async def families(self) -> Iterable[Family]:
        """Build, requests in flight, event loop lag and free disk space."""
        home = self._telemetry.settings.home
        free = (await asyncio.to_thread(shutil.disk_usage, home)).free if home.is_dir() else None
        return self._families(free)

    def _families(self, free: int | None) -> Iterator[Family]:
        yield metrics.BUILD_INFO.values([(self._build, 1.0)])
        yield metrics.IN_FLIGHT.value(self._telemetry.in_flight())
        yield metrics.LOOP_LAG.histograms([((), self._telemetry.lag.histogram)])
        if free is not None:
            yield metrics.DISK_FREE.value(free)
