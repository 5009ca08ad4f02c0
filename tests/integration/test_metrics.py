"""/metrics of a real gateway with a real engine: every metric is there, and it says what has happened."""

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

MARK = "xyzzy-plover-said-the-oracle"
QUIET = {metrics.FAULTS, metrics.GROUNDING_UNUSABLE, metrics.SOURCE_ERRORS}
"""Metrics whose every series begins with something that goes wrong."""


def scrape(gateway: Gateway) -> Samples:
    """A fresh scrape: the last one may be a second old."""
    time.sleep(1.05)
    return parse(text_of(gateway).encode())


def text_of(gateway: Gateway) -> str:
    """With the admin's key: without one nobody is named."""
    with gateway.http() as http:
        return http.get("/metrics").raise_for_status().text


def whole_scrape(gateway: Gateway) -> tuple[Samples, int]:
    """A scrape with the engine's own numbers, and how many had to do without: it gets a second for them."""
    without = 0
    while True:
        found = scrape(gateway)
        if any(name == "hatrack_engine_generation_tokens_total" for name, _ in found):
            return found, without
        without += 1
        assert without < 60, "the engine's numbers never came"


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    """By how much a metric's series with these labels have grown."""
    wanted = set(labels.items())
    return sum(
        number - before.get((known, having), 0.0)
        for (known, having), number in after.items()
        if known == name and wanted <= having
    )


def eventually(true: Callable[[], bool], within_s: float = 120) -> bool:
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.25)
    return True


def stream(gateway: Gateway, model: str, text: str) -> str:
    """Twelve tokens, whatever the model would rather say."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 12, "stream": True}
    body["ignore_eos"] = True
    with gateway.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        return "".join(response.iter_text())


def test_requests_are_counted_where_they_belong(gateway: Gateway) -> None:
    before = scrape(gateway)
    stream(gateway, "tidewater", "Where is my parcel?")
    gateway.answer("pemberton", "Where is my parcel?", max_tokens=5)
    assert gateway.chat("nobody-knows-it", "Hello").status_code == 404
    after = scrape(gateway)
    voice = {"project": "default", "adapter": "tidewater", "version": "1"}
    requests = "hatrack_requests_total"
    assert grown(before, after, requests, outcome="ok", **voice) == 1
    assert grown(before, after, requests, outcome="ok", adapter="pemberton") == 1
    assert grown(before, after, requests, outcome="refused", adapter="(none)") == 1
    assert grown(before, after, "hatrack_errors_total", code="model_not_found") == 1
    assert grown(before, after, "hatrack_time_to_first_token_seconds_count", **voice) == 1
    # of the eleven there are as many as pieces that came alone: on a busy machine several tokens come at once
    assert grown(before, after, "hatrack_inter_token_seconds_count", **voice) >= 2
    assert grown(before, after, "hatrack_completion_tokens_total", **voice) == 12
    assert grown(before, after, "hatrack_queue_seconds_count", **voice) == 1
    assert grown(before, after, "hatrack_admission_granted_total") >= 2
    assert not [labels for name, labels in after if "nobody-knows-it" in dict(labels).values()]


def test_without_a_key_nobody_is_named(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Good morning")
    named = scrape(gateway)
    nameless = parse(httpx.get(f"{gateway.url}/metrics", timeout=TIMEOUT).raise_for_status().content)
    projects = {dict(labels).get("project") for _, labels in nameless}
    assert projects <= {None, "(all)"}
    assert {name for name, _ in named} == {name for name, _ in nameless}
    assert grown(named, nameless, "hatrack_completion_tokens_total", adapter="(all)") >= 12


def test_every_metric_is_in_a_real_scrape(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Good morning")
    gateway.chat("nobody", "Hello")
    with gateway.http() as http:
        store = http.post("/v1/vector_stores", json={"name": "counted"}).json()["id"]
    gateway.answer("tidewater", "Good evening", grounding={"vector_store_ids": [store]})
    assert eventually(lambda: any(name == "hatrack_adapter_resident" for name, _ in scrape(gateway)))
    assert eventually(lambda: httpx.get(f"{gateway.url}/readyz", timeout=TIMEOUT).json()["trainer"] == {"state": "up"})
    assert value(scrape(gateway), "hatrack_trainer_up") == 1
    shown = {name for name, _ in scrape(gateway)}
    text = text_of(gateway)
    for metric in metrics.ALL:
        assert f"\n# TYPE {metric.name} {metric.kind}\n" in f"\n{text}", metric.name
        assert text.count(f"# TYPE {metric.name} ") == 1
        sample = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        assert sample in shown or metric in QUIET, metric.name
    assert set(metrics.PROCESS_NAMES) <= shown


def test_the_engines_own_numbers_pass_through(gateway: Gateway) -> None:
    before, _ = whole_scrape(gateway)
    stream(gateway, "pemberton", "Good evening")
    after, without = whole_scrape(gateway)
    for metric in FORWARDED.values():
        assert value(after, metric.name) >= 0
    assert grown(before, after, "hatrack_engine_generation_tokens_total") >= 12
    assert value(after, "hatrack_engine_state", state="ready") == 1
    assert grown(before, after, "hatrack_engine_scrape_errors_total") == without


def test_residency_is_what_is_loaded_and_not_what_runs(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Hello")

    def loaded_and_idle() -> bool:
        now = scrape(gateway)
        voice = {"adapter": "tidewater", "version": "1"}
        resident = [number for (name, having), number in now.items() if name == "hatrack_adapter_resident"]
        return bool(
            resident
            and value(now, "hatrack_adapter_resident", **voice) == 1
            and value(now, "hatrack_adapter_requests_running", **voice) == 0
            and value(now, "hatrack_engine_resident_adapters") >= 1
        )

    assert eventually(loaded_and_idle)


def test_the_registry_and_usage_are_shown(gateway: Gateway) -> None:
    assert eventually(lambda: value(scrape(gateway), "hatrack_usage_rows_written_total") >= 1)
    now = scrape(gateway)
    assert value(now, "hatrack_registry_adapters") >= 2
    assert value(now, "hatrack_registry_versions", state="ready", servable="ok") >= 2
    assert value(now, "hatrack_usage_write_errors_total") == 0
    assert value(now, "hatrack_event_loop_lag_seconds_count") > 0
    assert value(now, "hatrack_disk_free_bytes") > 0


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
    before, held = scrape(gateway), psutil.Process(gateway.process.pid).memory_info().rss
    assert asyncio.run(ask_strangers(gateway, range(2_000, 42_000))) == {404}
    after, holds = scrape(gateway), psutil.Process(gateway.process.pid).memory_info().rss
    assert grown(before, after, "hatrack_requests_total", adapter="(none)", project="default") == 40_000
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
def test_top_shows_what_has_happened(gateway: Gateway) -> None:
    stream(gateway, "tidewater", "Hello")
    command = [sys.executable, "-m", "service.cli", "top", "--interval", "1.2"]
    shown = subprocess.run([*command, "--json"], env=gateway.environment, capture_output=True, timeout=300, check=True)
    frame = json.loads(shown.stdout)
    assert frame["engine"] == "ready"
    assert "tidewater" in {one["adapter"] for one in frame["adapters"]}
    picture = subprocess.run(
        [*command, "--once"], env=gateway.environment, capture_output=True, timeout=300, check=True
    )
    assert b"tidewater@1" in picture.stdout
