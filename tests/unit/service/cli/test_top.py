"""`hatrack top`: right rates, quantiles and rows from two scrapes, and a picture that fits its terminal."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import ThreadingHTTPServer

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from rich.console import Console
from typer.testing import CliRunner

from service.cli.main import app
from service.cli.metrics_scrape import WINDOW_S, Frame, ScrapeWindow, parse, read_frame
from service.cli.top import picture
from service.client import ClientError
from service.http.stream import TokenUsage
from service.telemetry import metrics
from service.telemetry.account import MetricsAccount
from service.telemetry.engine import STATES
from tests.support.http import QuietHandler
from tests.unit.service.inference.fakes import catalog
from tests.unit.service.telemetry.support import BASE_TARGET, caller, record, refused

VOICE = ("shop", "voice", "3")


class Gateway:
    """Metrics of a gateway that has served what was counted so far."""

    def __init__(self) -> None:
        self.account = MetricsAccount(catalog(), 100)
        self.more: list[Family] = [
            metrics.BUILD_INFO.values([(("0.1.0", "0.32.0", "smol"), 1.0)]),
            metrics.ENGINE_STATE.values(((name,), float(name == "ready")) for name in STATES),
            metrics.QUEUED.values([(("caller",), 3.0), (("background",), 1.0)]),
            metrics.QUEUE_LIMIT.value(512),
            metrics.ADAPTER_RESIDENT.values([(VOICE, 1.0)]),
        ]
        self.existing = {VOICE: 2.0}
        """The versions that are not deleted, with how many requests each has in the engine."""

    def collect(self) -> Iterator[Family]:
        yield from self.more
        yield metrics.ADAPTER_RUNNING.values(self.existing.items())
        yield from self.account.families()

    @property
    def text(self) -> str:
        return generate_latest(self).decode()


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def frame_of(gateway: Gateway, *, seconds: float = 10.0) -> Frame:
    """What is shown after ten seconds in which two good answers, a cut one and a refusal came to an end."""
    window = ScrapeWindow()
    gateway.account(record(first_byte_s=20.0))
    window.add(parse(gateway.text), at=0.0)
    gateway.account(record(first_byte_s=0.3))
    gateway.account(record(first_byte_s=0.3, target=BASE_TARGET))
    gateway.account(record(first_byte_s=0.3, outcome="cut", code="engine_cut"))
    gateway.account(refused())
    window.add(parse(gateway.text), at=seconds)
    return read_frame(window)


def test_rates_are_of_the_window_and_not_since_the_start(gateway: Gateway) -> None:
    frame = frame_of(gateway)
    assert frame.requests_per_s == pytest.approx(0.4)
    assert frame.refused_per_s == pytest.approx(0.1)
    assert frame.failed_per_s == pytest.approx(0.1)
    assert frame.tokens_written_per_s == pytest.approx(1.5)
    assert frame.errors == pytest.approx({"model_not_found": 0.1, "engine_cut": 0.1})
    assert (frame.engine, frame.base, frame.queued, frame.queue_limit) == ("ready", "smol", 4, 512)
    assert frame.slots is None, "what the gateway does not say is not known, not 0"


def test_several_engines_are_told_together(gateway: Gateway) -> None:
    state = GaugeMetricFamily("hatrack_engine_state", "", labels=("state", "engine"))
    since = GaugeMetricFamily("hatrack_engine_state_since_timestamp_seconds", "", labels=("engine",))
    kv_cache = GaugeMetricFamily("hatrack_engine_kv_cache_usage_ratio", "", labels=("engine",))
    for engine, its_state, used in (("a", "ready", 0.4), ("b", "down", 0.9)):
        for name in STATES:
            state.add_metric((name, engine), float(name == its_state))
        since.add_metric((engine,), time.time())
        kv_cache.add_metric((engine,), used)
    gateway.more = [family for family in gateway.more if family.name != state.name] + [state, since, kv_cache]
    frame = frame_of(gateway)
    assert (frame.engine, frame.kv_cache_ratio) == ("1 of 2 ready", 0.9)
    assert frame.engine_for_s == pytest.approx(0, abs=600)


def test_quantiles_are_of_the_window(gateway: Gateway) -> None:
    frame = frame_of(gateway)
    assert frame.first_token_p50_s is not None
    assert frame.first_token_p99_s is not None
    assert 0.2 < frame.first_token_p50_s < frame.first_token_p99_s <= 0.35


def test_adapters_are_those_that_serve_the_busiest_first(gateway: Gateway) -> None:
    voice, base = frame_of(gateway).adapters
    assert (voice.project, voice.adapter, voice.version) == VOICE
    assert (voice.requests_per_s, voice.failed_per_s) == (pytest.approx(0.2), pytest.approx(0.1))
    assert (voice.loaded, voice.running, voice.waiting) == (True, 2, 0)
    assert (base.adapter, base.loaded) == ("(base)", None)


def test_a_deleted_adapter_leaves(gateway: Gateway) -> None:
    gateway.existing = {}
    frame = frame_of(gateway)
    assert [row.adapter for row in frame.adapters] == ["(base)"]
    assert frame.requests_per_s == pytest.approx(0.4), "what it answered still counts"


def test_a_gateway_that_started_anew_counts_from_zero() -> None:
    window = ScrapeWindow()
    before, after = Gateway(), Gateway()
    for _ in range(100):
        before.account(record())
    window.add(parse(before.text), at=0.0)
    after.account(record(usage=TokenUsage(1, 1)))
    window.add(parse(after.text), at=10.0)
    assert read_frame(window).requests_per_s == pytest.approx(0.1)


def test_old_scrapes_are_forgotten(gateway: Gateway) -> None:
    window = ScrapeWindow()
    for number in range(200):
        window.add(parse(gateway.text), at=float(number))
    assert window.seconds <= WINDOW_S + 1


def test_a_frame_is_json(gateway: Gateway) -> None:
    assert json.loads(json.dumps(asdict(frame_of(gateway))))["adapters"][0]["adapter"] == "voice"


@pytest.mark.parametrize("text", ["<html>", "# TYPE up gauge\nup 1\n", ""])
def test_what_is_not_a_gateways_is_said_to_be(text: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse(text)
    assert caught.value.code == "not_hatrack"


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture_fits_and_shows_what_matters(gateway: Gateway, width: int) -> None:
    for number in range(30):
        gateway.account(record(caller=caller(f"project-{number}")))
        gateway.existing[f"project-{number}", "voice", "3"] = 0.0
    written = io.StringIO()
    console = Console(file=written, width=width, height=24)
    console.print(picture(frame_of(gateway), "http://127.0.0.1:8000", max_lines=10, trouble="nobody answers"))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24
    text = written.getvalue()
    for part in ("voice@3", "ready", "4 of 512", "0.4/s", "… and 22 more", "nobody answers", "TTFT p50"):
        assert part in text


def test_control_characters_of_a_name_do_not_reach_the_terminal(gateway: Gateway) -> None:
    gateway.account(record(caller=caller("\x1b[2Jshop")))
    written = io.StringIO()
    Console(file=written, width=120).print(picture(frame_of(gateway), "http://x", max_lines=9))
    assert "\x1b" not in written.getvalue()


@pytest.fixture
def url(gateway: Gateway) -> Iterator[str]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:
            body = gateway.text.encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def test_the_command_prints_one_picture_or_json(url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.account(record())
    monkeypatch.setenv("HATRACK_URL", url)
    monkeypatch.setenv("HATRACK_KEY", "a-key-of-the-tests")
    pictured = CliRunner().invoke(app, ["top", "--once", "--interval", "1"])
    assert pictured.exit_code == 0
    assert "voice@3" in pictured.stdout
    framed = CliRunner().invoke(app, ["top", "--json", "--interval", "1"])
    assert json.loads(framed.stdout)["adapters"][0]["version"] == "3"


def test_the_command_says_that_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: the port refuses and nobody else can take it
        monkeypatch.setenv("HATRACK_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        result = CliRunner().invoke(app, ["top", "--once"])
    assert result.exit_code == 3
