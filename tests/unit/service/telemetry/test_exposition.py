"""The text of /metrics: whole where a part fails, one scrape for many who ask, one entry for each metric."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry import exposition, metrics
from service.telemetry.account import SERIES_PER_CHUNK, MetricsAccount
from service.telemetry.exposition import Exposition
from service.telemetry.telemetry import AccountSource
from tests.unit.service.inference.fakes import catalog
from tests.unit.service.telemetry.support import caller, parse, record, value


class Numbers:
    """Says how often it was asked."""

    name = "numbers"
    asked = 0

    async def families(self) -> Iterable[Family]:
        self.asked += 1
        await asyncio.sleep(0)
        return [metrics.IN_FLIGHT.value(self.asked)]


class Broken:
    name = "broken"

    async def families(self) -> Iterable[Family]:
        raise ZeroDivisionError("of no interest")


class Silent:
    name = "silent"

    async def families(self) -> Iterable[Family]:
        await asyncio.Event().wait()
        raise AssertionError("never woken")


async def test_a_part_that_fails_or_is_silent_is_missing_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (0.05, 1.0, 20.0):  # on a busy machine a part that is none of both may be late as well
        monkeypatch.setattr(exposition, "SOURCE_TIMEOUT_S", seconds)
        text = await Exposition([Broken(), Silent(), Numbers()]).text()
        if b'source="numbers"' not in text:
            break
    samples = parse(text)
    assert value(samples, "hatrack_requests_in_flight") == 1
    assert value(samples, "hatrack_metrics_source_errors_total", source="broken") == 1
    assert value(samples, "hatrack_metrics_source_errors_total", source="silent") == 1
    assert value(samples, "process_resident_memory_bytes") > 1_000_000


async def test_many_who_ask_at_once_cause_one_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Numbers()
    shown = Exposition([numbers])
    texts = await asyncio.gather(*(shown.text() for _ in range(20)))
    assert (numbers.asked, len(set(texts))) == (1, 1)
    monkeypatch.setattr(exposition, "FRESH_S", 0.0)
    await shown.text()
    assert numbers.asked == 2


async def test_a_metric_that_is_written_in_parts_stands_there_once() -> None:
    account = MetricsAccount(catalog(), 100)
    for number in range(SERIES_PER_CHUNK * 2 + 3):
        account(record(caller=caller(f"p{number}")))
    text = await Exposition([AccountSource(account)]).text()
    names = [family.name for family in text_string_to_metric_families(text.decode())]
    assert len(names) == len(set(names))
    for metric in (metrics.REQUESTS, metrics.FIRST_TOKEN):
        assert text.count(b"# TYPE " + metric.name.encode() + b" ") == 1
    assert value(parse(text), "hatrack_requests_total") == SERIES_PER_CHUNK * 2 + 3


async def test_other_tasks_run_while_the_text_is_written() -> None:
    account = MetricsAccount(catalog(), 1000)
    for number in range(200):
        account(record(caller=caller(f"p{number}")))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    await Exposition([AccountSource(account)]).text()
    counting.cancel()
    assert turns > 5 * 200 / SERIES_PER_CHUNK
