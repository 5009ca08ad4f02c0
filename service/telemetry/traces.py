"""OpenTelemetry traces of inference requests, sent to an OTLP collector (HTTP, protobuf) where a setting names one.

A request's span begins when it arrives and ends when its account is made, and the engine gets its `traceparent`, so
that vLLM's spans join the same trace. Names and attributes follow the semantic conventions for generative AI; a prompt,
an answer or a key is in none of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from service import __version__
from service.errors import SettingsError
from service.telemetry.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer as OtelTracer

EXPORT_TIMEOUT_S: Final = 5
SHUTDOWN_TIMEOUT_S: Final = 6.0
OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""``gen_ai.operation.name`` of a route; routes without one call no model."""
_NS: Final = 1_000_000_000
_LOG = logging.getLogger("hatrack.traces")


class RequestSpan:
    """The span of one request, from arrival to account."""

    __slots__ = ("began_ns", "headers", "otel")

    def __init__(self, otel: OtelSpan) -> None:
        self.otel = otel
        self.began_ns = time.time_ns()
        context = otel.get_span_context()
        self.headers: Mapping[str, str] = {
            "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        }


class Traces:
    """Starts spans, and ends them as an account (`service.telemetry.record.Account`).

    Args:
        provider: OpenTelemetry's, with the exporter that it was given.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer: OtelTracer = provider.get_tracer("hatrack", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, route: str, headers: Mapping[str, str], request_id: str) -> RequestSpan:
        """Start the span of a request that has just arrived, as a child of a valid `traceparent` header."""
        from opentelemetry.trace import SpanKind

        return RequestSpan(
            self._tracer.start_span(
                f"POST {route}",
                context=self._propagator.extract(headers),
                kind=SpanKind.SERVER,
                attributes={"http.request.method": "POST", "http.route": route, "hatrack.request_id": request_id},
            )
        )

    def __call__(self, record: Record) -> None:
        """End the record's span, with its attributes and a child span for each stage."""
        span = record.span
        if span is None:
            return
        if span.otel.is_recording():
            self._describe(span.otel, record)
            self._stages(span, record)
        span.otel.end(span.began_ns + int(record.total_s * _NS))

    def _describe(self, otel: OtelSpan, record: Record) -> None:
        from opentelemetry.trace import StatusCode

        otel.set_attributes(_attributes(record))
        if record.outcome in ("failed", "cut"):
            otel.set_status(StatusCode.ERROR, record.code)

    def _stages(self, span: RequestSpan, record: Record) -> None:
        """Children made afterwards from the record's times: nothing is paid for them while the request runs."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        if record.target is None or record.sent_s is None:
            return
        context = set_span_in_context(span.otel)
        queued_s = record.queue_s or 0.0
        retrieved_s = record.grounded.seconds if record.grounded is not None else 0.0

        def stage(name: str, start_s: float, end_s: float, kind: SpanKind = SpanKind.INTERNAL) -> None:
            begin, end = (span.began_ns + int(seconds * _NS) for seconds in (start_s, max(start_s, end_s)))
            child = self._tracer.start_span(name, context=context, kind=kind, start_time=begin)
            if kind is SpanKind.CLIENT and record.first_byte_s is not None:
                child.add_event("first token", timestamp=span.began_ns + int(record.first_byte_s * _NS))
            child.end(end)

        prepared_s = record.sent_s - queued_s - retrieved_s
        stage("prepare", 0.0, prepared_s)
        if record.grounded is not None:
            stage("retrieve", prepared_s, prepared_s + retrieved_s)
        if record.queue_s is not None:
            stage("queue", record.sent_s - queued_s, record.sent_s)
        if record.reached:
            stage("embedder" if record.target.embeds else "engine", record.sent_s, record.total_s, SpanKind.CLIENT)

    async def close(self) -> None:
        """Send the remaining spans, within a bounded time."""
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            _LOG.warning("some traces were not exported before shutdown")


def _attributes(record: Record) -> dict[str, Any]:
    caller, target, usage = record.caller, record.target, record.usage
    attributes: dict[str, Any] = {
        "http.response.status_code": record.status,
        "hatrack.outcome": record.outcome,
        "error.type": record.code,
        "hatrack.project": caller.project if caller else None,
        "hatrack.key_id": caller.key_id if caller else None,
    }
    if target is not None:
        attributes |= {
            "gen_ai.operation.name": OPERATIONS.get(record.route),
            "gen_ai.provider.name": "hatrack" if target.embeds else "vllm",
            "gen_ai.request.model": target.label,
            "gen_ai.response.model": target.name,
            "gen_ai.request.stream": record.stream,
            "hatrack.adapter": target.adapter,
            "hatrack.version": target.version,
            "hatrack.digest": target.digest,
        }
    if usage is not None:
        attributes |= {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        }
    if record.stream and record.first_byte_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = record.first_byte_s
    return {name: value for name, value in attributes.items() if value is not None}


def make_traces(endpoint: str, ratio: float) -> Traces:
    """Traces that go to an OTLP collector in the background: a full queue drops spans, never requests.

    Args:
        endpoint: The collector's URL for traces, such as http://127.0.0.1:4318/v1/traces.
        ratio: Share of traces that are recorded, 0 to 1; it holds for traces that a client has begun, too.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            "HATRACK_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: install hatrack with the extra `otel`"
        ) from error
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
    return traces_to(BatchSpanProcessor(exporter), ratio)


def traces_to(processor: SpanProcessor, ratio: float) -> Traces:
    """Traces whose finished spans go to ``processor``."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    share = TraceIdRatioBased(ratio)
    provider = TracerProvider(
        # a client's own mark "sampled" does not make us record more than the operator wants
        sampler=ParentBased(share, remote_parent_sampled=share),
        resource=Resource.create({"service.name": "hatrack", "service.version": __version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    return Traces(provider)
