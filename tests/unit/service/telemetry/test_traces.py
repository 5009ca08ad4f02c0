"""Traces: one span a request with the stages in it, joined to the caller's trace and passed to the engine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service.access.authentication import Authenticator
from service.config import Settings
from service.errors import EngineUnavailable, SettingsError
from service.grounding.injectors import CHAT_INJECTOR
from service.grounding.outcome import GroundingResult
from service.inference.dispatch import Dispatch
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from service.telemetry.record import Accounts
from service.telemetry.traces import Traces, make_traces, traces_to
from tests.support.http import QuietHandler
from tests.unit.service.inference.fakes import BASE, DONE, KEY, World, catalog, token, usage_event
from tests.unit.service.telemetry.support import record

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Traces:
    return traces_to(SimpleSpanProcessor(exporter), 1.0)


def traced(traces: Traces) -> World:
    """A data path whose requests are traced."""
    world = World()
    world.engine.chunks = [token("A"), token("hoy"), usage_event(), DONE]
    pipeline = Pipeline(
        world.settings,
        Authenticator(KEY),
        catalog(),
        Dispatch(world.settings, world.engine, BASE),
        account=Accounts(world.records.append, traces),
        tracer=traces,
    )
    world.app = InferenceApp(world.settings, pipeline)
    return world


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_a_request_is_a_span_with_the_conventions_attributes(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    answer = await traced(traces).chat(stream=True)
    root = by_name(exporter)["POST /v1/chat/completions"]
    attributes = dict(root.attributes or {})
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0  # type: ignore[operator]
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "voice",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "voice@3",
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "hatrack.adapter": "voice",
        "hatrack.version": 3,
        "hatrack.digest": "3" * 64,
        "hatrack.key_id": "admin",
        "hatrack.outcome": "ok",
        "hatrack.project": "default",
        "hatrack.request_id": answer.headers["x-request-id"],
    }
    assert root.status.status_code is StatusCode.UNSET


async def test_the_stages_lie_in_the_request_one_after_another(traces: Traces, exporter: InMemorySpanExporter) -> None:
    span = traces.begin("/v1/chat/completions", {}, "r1")
    traces(record(span=span, queue_s=0.5, sent_s=0.75, first_byte_s=1.0, total_s=2.0))
    spans = by_name(exporter)
    root = spans["POST /v1/chat/completions"]
    assert root.start_time is not None
    times = {
        name: tuple(round(((at or 0) - root.start_time) / 1e9, 2) for at in (child.start_time, child.end_time))
        for name, child in spans.items()
    }
    assert {child.parent.span_id for child in spans.values() if child.parent} == {root.context.span_id}
    assert times["prepare"] == (0.0, 0.25)
    assert times["queue"] == (0.25, 0.75)
    assert times["engine"] == (0.75, 2.0)
    assert times[root.name][1] == 2.0
    assert [event.name for event in spans["engine"].events] == ["first token"]


async def test_retrieval_is_a_stage_of_its_own(traces: Traces, exporter: InMemorySpanExporter) -> None:
    span = traces.begin("/v1/chat/completions", {}, "r1")
    grounded = GroundingResult("ok", CHAT_INJECTOR, 0.1)
    traces(record(span=span, grounded=grounded, queue_s=0.5, sent_s=0.75, first_byte_s=1.0, total_s=2.0))
    spans = by_name(exporter)
    began = spans["POST /v1/chat/completions"].start_time or 0
    child = spans["retrieve"]
    assert [round(((at or 0) - began) / 1e9, 2) for at in (child.start_time, child.end_time)] == [0.15, 0.25]


async def test_the_callers_trace_goes_through_to_the_engine(traces: Traces, exporter: InMemorySpanExporter) -> None:
    world = traced(traces)
    body = b'{"model":"voice","messages":[{"role":"user","content":"Hello"}],"stream":true}'
    await world.ask("/v1/chat/completions", body, headers={"traceparent": PARENT})
    root = by_name(exporter)["POST /v1/chat/completions"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"
    assert world.engine.last.headers["traceparent"] == f"00-{TRACE}-{root.context.span_id:016x}-01"


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "x" * 5000])
async def test_a_malformed_traceparent_begins_a_new_trace(
    header: str, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    assert (await traced(traces).ask("/v1/chat/completions", {}, headers={"traceparent": header})).status == 400
    assert by_name(exporter)["POST /v1/chat/completions"].parent is None


async def test_a_failure_is_an_error_and_a_refusal_is_the_clients(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    world = traced(traces)
    assert (await world.chat(model="nobody")).status == 404
    world.engine.down = EngineUnavailable("gone")
    assert (await world.chat()).status == 503
    refused, failed = exporter.get_finished_spans()[0], exporter.get_finished_spans()[-1]
    assert refused.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert refused.attributes is not None
    assert refused.attributes["error.type"] == "model_not_found"


@pytest.mark.parametrize("ratio", [0.0, 1.0])
async def test_the_ratio_holds_also_for_what_a_client_has_marked(ratio: float, exporter: InMemorySpanExporter) -> None:
    world = traced(traces_to(SimpleSpanProcessor(exporter), ratio))
    body = b'{"model":"voice","messages":[{"role":"user","content":"Hello"}],"stream":true}'
    assert (await world.ask("/v1/chat/completions", body, headers={"traceparent": PARENT})).status == 200
    assert bool(exporter.get_finished_spans()) == (ratio == 1.0)
    assert world.engine.last.headers["traceparent"].endswith(f"-0{int(ratio)}")


class Collector(ThreadingHTTPServer):
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[tuple[str, ExportTraceServiceRequest]] = []
        super().__init__(("127.0.0.1", 0), Receiver)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Receiver(QuietHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    serving.start()
    yield server
    server.shutdown()
    server.server_close()
    serving.join()


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
async def test_spans_reach_a_collector_before_the_gateway_ends(
    collector: Collector, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EXPORT_TIMEOUT_S", "SHUTDOWN_TIMEOUT_S"):  # which is to be no question of how busy the machine is
        monkeypatch.setattr(f"service.telemetry.traces.{name}", 240)
    settings = Settings(engine_device="cpu", otlp_endpoint=collector.url + path)
    traces = make_traces(settings.otlp_traces, settings.otlp_ratio)
    await traced(traces).chat(stream=True)
    await traces.close()
    [(asked, request)] = collector.got
    assert asked == "/v1/traces"
    [resource] = request.resource_spans
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {"POST /v1/chat/completions", "prepare", "engine"}
    service = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert service["service.name"] == "hatrack"


def test_a_missing_library_is_named_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match="extra `otel`"):
        make_traces("http://127.0.0.1:4318/v1/traces", 1.0)


def test_without_the_setting_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, service.app; from service.config import Settings; from service.registry.catalog import Catalog; "
        "from service.telemetry.telemetry import Telemetry; "
        "t = Telemetry(Settings(engine_device='cpu'), Catalog('b', 0), '0'); "
        "sys.exit(t.tracer is not None or any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HATRACK_")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=240, check=False).returncode == 0
