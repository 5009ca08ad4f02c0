"""`/metrics` of a real gateway with a real engine: every metric is there, and counts what happened."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable

import aiohttp
import httpx
import psutil
import pytest

from service.telemetry import metrics
from service.telemetry.engine import FORWARDED
from tests.support.gateway import TIMEOUT, Gateway
from tests.unit.service.telemetry.support import Samples, parse, value

pytestmark = pytest.mark.engine

PATIENCE_S = 300.0
GRANTED = "hatrack_admission_granted_total"
GENERATED = "hatrack_engine_generation_tokens_total"
SCRAPE_ERRORS = "hatrack_engine_scrape_errors_total"
MARK = "xyzzy-plover-said-the-oracle"
QUIET = {metrics.FAULTS, metrics.GROUNDING_UNUSABLE, metrics.SOURCE_ERRORS}
"""Metrics whose every series begins with something that goes wrong."""


def scrape(gateway: Gateway) -> Samples:
    """All samples of a fresh scrape."""
    return parse(gateway.metrics().encode())


def scrape_where(gateway: Gateway, condition: Callable[[Samples], bool], failure: str) -> Samples:
    """The first scrape that meets the condition. A request is counted after its answer was sent, and on a busy machine
    a scrape omits what a part of the gateway reports late, so the first one may not have it yet."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition(samples := scrape(gateway)):
        assert time.monotonic() < deadline, failure
    return samples


def scrape_with_engine_metrics(gateway: Gateway, generated: float = 0) -> tuple[Samples, int, int]:
    """A scrape with the engine's own metrics and at least so many tokens generated. Also how many scrapes before it
    lacked them but had the count of such scrapes, and how many lacked them at all."""
    shown = without = 0

    def complete(samples: Samples) -> bool:
        nonlocal shown, without
        if shows(samples, GENERATED):
            return value(samples, GENERATED) >= generated
        without += 1
        shown += shows(samples, SCRAPE_ERRORS)
        return False

    return scrape_where(gateway, complete, "the engine's numbers never came"), shown, without


def shows(samples: Samples, name: str, number: float | None = None, **labels: str) -> bool:
    """Whether a metric has samples with these labels, and their sum is that number, where one is given."""
    expected = set(labels.items())
    values = [value for (known, having), value in samples.items() if known == name and expected <= having]
    return bool(values) and (number is None or sum(values) == number)


def growth(before: Samples, after: Samples, name: str, **labels: str) -> float:
    """By how much a metric's series with these labels have grown."""
    expected = set(labels.items())
    return sum(
        number - before.get((known, having), 0.0)
        for (known, having), number in after.items()
        if known == name and expected <= having
    )


def stream(gateway: Gateway, model: str, text: str, tokens: int = 12) -> str:
    """So many tokens, whatever the model would rather say."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": True}
    body["ignore_eos"] = True
    with gateway.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        return "".join(response.iter_text())


def test_requests_are_counted_by_adapter_version_and_outcome(gateway: Gateway) -> None:
    voice = {"project": "default", "adapter": "tidewater", "version": "1"}
    requests = "hatrack_requests_total"

    def idle(now: Samples) -> bool:
        return shows(now, "hatrack_requests_in_flight", 0) and shows(now, requests) and shows(now, GRANTED)

    gateway.answer(gateway.base_name(), "Hello", max_tokens=1)  # so that there is something to show
    before = scrape_where(gateway, idle, "something is still asked")
    stream(gateway, "tidewater", "Where is my parcel?", tokens=48)
    gateway.answer("pemberton", "Where is my parcel?", max_tokens=5)
    assert gateway.chat("nobody-knows-it", "Hello").status_code == 404

    def counted(now: Samples) -> bool:
        answered_by = ("tidewater", "pemberton", "(none)")
        return all(growth(before, now, requests, adapter=name) >= 1 for name in answered_by) and shows(now, GRANTED)

    after = scrape_where(gateway, counted, "the requests were not counted")
    assert growth(before, after, requests, outcome="ok", **voice) == 1
    assert growth(before, after, requests, outcome="ok", adapter="pemberton") == 1
    assert growth(before, after, requests, outcome="refused", adapter="(none)") == 1
    assert growth(before, after, "hatrack_errors_total", code="model_not_found") == 1
    assert growth(before, after, "hatrack_time_to_first_token_seconds_count", **voice) == 1
    assert growth(before, after, "hatrack_completion_tokens_total", **voice) == 48
    assert growth(before, after, "hatrack_queue_seconds_count", **voice) == 1
    assert growth(before, after, GRANTED) >= 2
    assert not [labels for name, labels in after if "nobody-knows-it" in dict(labels).values()]


@pytest.mark.slow
def test_gaps_between_tokens_are_measured(gateway: Gateway) -> None:
    def gaps(now: Samples) -> float:
        return sum(count for (name, _), count in now.items() if name == "hatrack_inter_token_seconds_count")

    before = scrape_where(gateway, lambda now: shows(now, "hatrack_requests_total"), "nothing is counted")
    deadline = time.monotonic() + PATIENCE_S
    # on a busy machine several tokens come at once, perhaps all of an answer
    while gaps(scrape(gateway)) <= gaps(before):
        assert time.monotonic() < deadline, "no gap was measured"
        stream(gateway, "tidewater", "Where is my parcel?", tokens=48)


def test_without_a_key_a_scrape_has_totals_and_names_no_project(gateway: Gateway) -> None:
    before = scrape(gateway)
    stream(gateway, "tidewater", "Good morning")
    scrape_where(
        gateway, lambda now: growth(before, now, "hatrack_completion_tokens_total") >= 12, "it was not counted"
    )
    without_key: Samples = {}

    def alike(named: Samples) -> bool:
        """Not each time: they are two scrapes, and one of them may do without what comes late."""
        nonlocal without_key
        without_key = parse(httpx.get(f"{gateway.url}/metrics", timeout=TIMEOUT).raise_for_status().content)
        projects = {dict(labels).get("project") for _, labels in without_key}
        assert projects <= {None, "(all)"}
        return {name for name, _ in named} == {name for name, _ in without_key}

    named = scrape_where(gateway, alike, "without a key other metrics are shown")
    assert growth(named, without_key, "hatrack_completion_tokens_total", adapter="(all)") >= 12


def test_every_metric_is_in_a_real_scrape(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Good morning")
    gateway.chat("nobody", "Hello")
    with gateway.http() as http:
        store = http.post("/v1/vector_stores", json={"name": "counted"}).json()["id"]
    gateway.answer("tidewater", "Good evening", grounding={"vector_store_ids": [store]})

    def trainer_is_up(now: Samples) -> bool:
        ready = httpx.get(f"{gateway.url}/readyz", timeout=TIMEOUT).json()
        return shows(now, "hatrack_trainer_up", 1) and bool(ready["trainer"] == {"state": "up"})

    scrape_where(gateway, trainer_is_up, "the trainer is not up")
    deadline = time.monotonic() + PATIENCE_S
    while missing := missing_metrics(gateway):
        assert time.monotonic() < deadline, missing


def missing_metrics(gateway: Gateway) -> list[str]:
    """The metrics that a scrape shows without samples, or whose two lines of comment it has not just once."""
    text = "\n" + gateway.metrics()
    shown = {name for name, _ in parse(text.encode())}
    missing = [name for name in metrics.PROCESS_NAMES if name not in shown]
    for metric in metrics.ALL:
        if metric.name.startswith("hatrack_object_"):
            continue  # this gateway has no object store; its metrics are in unit/service/objects/test_cache.py
        if metric.name.startswith("hatrack_fronts_"):
            continue  # nor may it have fronts: unit/service/fronts/test_front.py reads these
        sample = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        typed = text.count(f"\n# TYPE {metric.name} {metric.kind}\n") == text.count(f"# TYPE {metric.name} ") == 1
        if not typed or (sample not in shown and metric not in QUIET):
            missing.append(metric.name)
    return missing


def test_the_engines_own_metrics_are_forwarded(gateway: Gateway) -> None:
    before, _, _ = scrape_with_engine_metrics(gateway)
    stream(gateway, "pemberton", "Good evening")
    after, shown, without = scrape_with_engine_metrics(gateway, value(before, GENERATED) + 12)
    for metric in FORWARDED.values():
        assert value(after, metric.name) >= 0
    assert value(after, "hatrack_engine_state", state="ready") == 1
    assert shown <= growth(before, after, SCRAPE_ERRORS) <= without


def test_an_idle_loaded_adapter_is_resident_with_no_running_requests(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Hello")

    def loaded_and_idle(now: Samples) -> bool:
        voice = {"adapter": "tidewater", "version": "1"}
        return (
            shows(now, "hatrack_adapter_resident", 1, **voice)
            and shows(now, "hatrack_adapter_requests_running", 0, **voice)
            and shows(now, "hatrack_engine_resident_adapters")
            and value(now, "hatrack_engine_resident_adapters") >= 1
        )

    scrape_where(gateway, loaded_and_idle, "it is not shown as loaded and idle")


def test_metrics_of_the_registry_and_of_usage_are_shown(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Hello")
    minimums = {
        "hatrack_usage_rows_written_total": 1,
        "hatrack_registry_adapters": 2,
        "hatrack_event_loop_lag_seconds_count": 1,
        "hatrack_disk_free_bytes": 1,
    }

    def shown(now: Samples) -> bool:
        return shows(now, "hatrack_registry_versions", state="ready", servable="ok") and all(
            shows(now, name) and value(now, name) >= number for name, number in minimums.items()
        )

    now = scrape_where(gateway, shown, "something is not shown")
    assert value(now, "hatrack_registry_versions", state="ready", servable="ok") >= 2
    assert value(now, "hatrack_usage_write_errors_total") == 0


async def ask_strangers(gateway: Gateway, names: range) -> set[int]:
    """Ask for `stranger-N` for every N, 16 at once; the statuses that came back."""
    left, seen = iter(names), set()
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {gateway.key}"}) as session:

        async def some() -> None:
            for number in left:
                body = {"model": f"stranger-{number}", "messages": [{"role": "user", "content": "Hello"}]}
                async with session.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
                    await response.read()
                    seen.add(response.status)

        await asyncio.gather(*(some() for _ in range(16)))
    return seen


@pytest.mark.slow
def test_forty_thousand_unknown_names_grow_neither_labels_nor_memory(gateway: Gateway) -> None:
    assert gateway.process is not None
    asyncio.run(ask_strangers(gateway, range(2_000)))
    before = scrape_where(gateway, lambda now: shows(now, "hatrack_requests_total"), "no request was counted")
    held = psutil.Process(gateway.process.pid).memory_info().rss
    assert asyncio.run(ask_strangers(gateway, range(2_000, 42_000))) == {404}
    asked = {"adapter": "(none)", "project": "default"}

    def counted(now: Samples) -> bool:
        return growth(before, now, "hatrack_requests_total", **asked) >= 40_000

    after = scrape_where(gateway, counted, "the requests were not counted")
    holds = psutil.Process(gateway.process.pid).memory_info().rss
    assert growth(before, after, "hatrack_requests_total", **asked) == 40_000
    assert {key for key in after if key[0] == "hatrack_requests_total"} == {
        key for key in before if key[0] == "hatrack_requests_total"
    }
    assert holds - held < 16 * 2**20  # 420 bytes a name would be this much


def test_no_prompt_answer_or_key_is_in_any_log(gateway: Gateway) -> None:
    stream(gateway, "tidewater", MARK)
    gateway.chat(MARK, "Hello")
    gateway.chat("tidewater", MARK, mystery=MARK)
    httpx.post(
        f"{gateway.url}/v1/chat/completions", headers={"authorization": f"Bearer {MARK}"}, json={}, timeout=TIMEOUT
    )
    for path in (gateway.home / "gateway.log", gateway.home / "engine" / "engine.log"):
        text = path.read_text(errors="replace")
        assert MARK not in text
        assert gateway.key not in text


@pytest.mark.slow
def test_top_shows_the_engines_state_and_the_adapters_that_were_used(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Hello")
    command = [sys.executable, "-m", "service.cli", "top", "--interval", "1.2"]
    shown = subprocess.run([*command, "--json"], env=gateway.environment, capture_output=True, timeout=300, check=True)
    frame = json.loads(shown.stdout)
    assert frame["engine"] == "ready"
    assert "tidewater" in {adapter["adapter"] for adapter in frame["adapters"]}
    picture = subprocess.run(
        [*command, "--once"], env=gateway.environment, capture_output=True, timeout=300, check=True
    )
    assert b"tidewater@1" in picture.stdout
