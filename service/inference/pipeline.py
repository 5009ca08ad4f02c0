"""The inference pipeline: everything that happens to one request, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, closing, contextmanager, nullcontext
from typing import Any

import orjson

from service.access.authentication import Authenticator
from service.access.caller import Caller, Scope
from service.access.limits import KeyLimiter, Reservation
from service.admission.estimate import BYTES_PER_TOKEN, estimate
from service.admission.queue import AdmissionQueue, Permit
from service.admission.request import AdmissionRequest
from service.config import MIB, Settings
from service.engine.busy import EngineClock
from service.engine.contract import ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE
from service.errors import EngineCut, HatrackError, Unavailable, to_hatrack_error
from service.grounding.fields import FIELD, RetrievalOptions, retrieval_options
from service.grounding.hook import Hook
from service.http.checks import parse_body
from service.http.stream import Relay, TokenUsage
from service.inference.calls import CacheSalts, Call, EngineCalls, with_prompt
from service.inference.dialect import Route
from service.inference.embedding import EmbeddingRequests
from service.inference.exchange import CLIENT_LEFT, ClientLeft, Exchange
from service.inference.fields import check_body
from service.inference.length import PromptLimit
from service.inference.prompt import rendered_prompt
from service.inference.relay import Renamer, engine_error
from service.inference.sticky import resolve
from service.inference.upstream import Upstream, UpstreamResponse
from service.registry.catalog import Catalog, Target
from service.structured.checker import StructuredOutputs
from service.telemetry.record import Account, LogAccount, Record
from service.telemetry.traces import Traces

ReportSuspect = Callable[[str], None]
"""Called with the digest of an adapter whose request failed in the engine; must be quick and must not raise."""

OVERLOAD_RETRY_S = 1
ADAPTER_FAULT_CODES = frozenset({ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE})
"""Error codes that are evidence of a fault in an adapter's weights or files."""


class Pipeline:
    """Runs inference requests.

    Args:
        account: Called with the record of every inference request once it is over.
        suspect: Called with the digest of an adapter whose request failed in the engine.
        saw_tokens: Called whenever the engine sent output: a sign of life.
        limiter: Enforces the keys' limits; None: no limits.
        admission_queue: Fair admission; None: requests go straight to the engine.
        tracer: Begins a trace for each request; None: no traces.
        hook: Retrieves passages for grounded requests; None: those are refused.
        counting: Fair admission to the engine's tokenizer, for routes that run no model; None: no limit.
        prompt_limit: The longest prompt; None: derived from the settings' context only.
        grammars: Checks structured outputs; None: they go to the engine unchecked.
        engine_clock: Measures each request's share of the engine's time; None: one of its own.
        check_budget: Refuses requests of projects whose budget is spent.
        embeddings: Answers requests to the embedder; None: there is none.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        catalog: Catalog,
        engine: Upstream,
        *,
        account: Account | None = None,
        suspect: ReportSuspect = lambda digest: None,
        saw_tokens: Callable[[], None] = lambda: None,
        limiter: KeyLimiter | None = None,
        admission_queue: AdmissionQueue | None = None,
        tracer: Traces | None = None,
        hook: Hook | None = None,
        counting: AdmissionQueue | None = None,
        prompt_limit: PromptLimit | None = None,
        grammars: StructuredOutputs | None = None,
        engine_clock: EngineClock | None = None,
        check_budget: Callable[[Caller], None] = lambda caller: None,
        embeddings: EmbeddingRequests | None = None,
    ) -> None:
        self._max_body = int(settings.max_body_mib * MIB)
        self._pass_unknown = settings.unknown_fields == "pass"
        self._timeout_s = settings.request_timeout_s
        self._max_in_flight = settings.max_in_flight
        self.authenticator = authenticator
        self.catalog = catalog
        self._calls = EngineCalls(engine, saw_tokens, settings.request_timeout_s)
        self._account = account or LogAccount()
        self._suspect = suspect
        self._saw_tokens = saw_tokens
        self._limiter = limiter
        self._admission_queue = admission_queue
        self._counting = counting
        self._prompt_limit = prompt_limit or PromptLimit(settings.context)
        self._tracer = tracer
        self._hook = hook
        self._grammars = grammars
        self._check_budget = check_budget
        self._embeddings = embeddings
        self._engine_clock = engine_clock or EngineClock()
        self._context = settings.context
        self._queue_timeout_s = settings.queue_timeout_s
        self._salts = CacheSalts()
        self.in_flight = 0

    async def infer(self, route: Route, exchange: Exchange, caller: Caller | None = None) -> None:
        """Answer one request. Every error is sent to the client, and every request is recorded.

        Args:
            caller: Who asks, for a request of the gateway's own; None: whose key is in the headers.
        """
        record = Record(request_id=exchange.request_id, route=exchange.path, peer=exchange.peer)
        began = time.perf_counter()
        reservation: Reservation | None = None
        try:
            if self._tracer is not None:
                record.span = self._tracer.begin(exchange.path, exchange.headers, exchange.request_id)
            caller = record.caller = caller or self.authenticator.authenticate(exchange.headers)
            caller.demand(Scope.INFER)
            self._check_budget(caller)
            if self._limiter is not None:
                reservation = self._limiter.enter(caller)
            raw = await exchange.read_json_body(self._max_body)
            body = parse_body(raw)
            target = record.target = resolve(self.catalog, caller, body, exchange.headers)
            if target.embeds and self._embeddings is not None:  # it has a process, fields and a queue of its own
                with self._admitted():
                    await self._embeddings.answer(exchange, caller, target, record, body, reservation, began)
                return
            options = self._check_fields(route, caller, target, body, len(raw))
            record.stream = bool(body.get("stream"))
            shown = self._estimate(record, route, target, body, len(raw))
            _name_adapter(exchange, target)
            if reservation is not None:
                reservation.charge(record.estimate)
                if options is None:
                    exchange.add_headers(reservation.headers())
            with self._admitted():
                route.dialect.apply_settings(body, target.settings, route.table, generates=route.generates)
                async with exchange.cancel_on_disconnect(self._timeout_s):
                    if options is not None:
                        await self._ground(options, exchange, route, record, body, reservation, shown)
                    if shown:  # after the passages: no example's question is taken for the request's own
                        route.dialect.add_examples(body, target.settings.example_messages)
                    if route.renders:
                        await self._render(exchange, target, record, body)
                        return
                    await self._ask(exchange, route, caller, target, record, body, began)
        except ClientLeft:
            exchange.status, record.outcome, record.code = CLIENT_LEFT, "left", "client_left"
        except asyncio.CancelledError:
            record.outcome, record.code = "cut", "shutdown"
            raise
        except Exception as error:
            await self._fail(exchange, record, to_hatrack_error(error, exchange.request_id))
        finally:
            if reservation is not None:
                reservation.close(record.tokens)
            record.status = exchange.status
            record.total_s = time.perf_counter() - began
            self._account(record)

    def check(self, route: Route, caller: Caller, raw: bytes) -> Target:
        """Hold a body to what ``infer`` would refuse of it without asking anybody; returns its target.

        Raises:
            HatrackError: As ``infer`` would answer.
        """
        body = parse_body(raw)
        target = resolve(self.catalog, caller, body, {})
        if target.embeds and self._embeddings is not None:
            self._embeddings.check(route.engine_path, target, body)
        else:
            self._check_fields(route, caller, target, body, len(raw))
        return target

    def _check_fields(
        self, route: Route, caller: Caller, target: Target, body: dict[str, Any], size: int
    ) -> RetrievalOptions | None:
        """Check the fields of a body of ``size`` bytes, which it changes in place; returns what is to be retrieved."""
        self._prompt_limit.check_ids(body, size)
        check_body(body, route.table, route.required, pass_unknown=self._pass_unknown)
        options = _take_grounding(route, body, target, caller)
        route.dialect.force_tools(body)
        self._prompt_limit.check_text(body, size, only_tokenizes=not route.salted)
        return options

    def _estimate(self, record: Record, route: Route, target: Target, body: dict[str, Any], body_bytes: int) -> int:
        """Note how many tokens the request may take, passages aside; returns those of the version's own examples."""
        shown = target.settings.example_tokens if route.dialect.turns in body else 0
        record.estimate = estimate(body, body_bytes, self._context, answers=route.generates) + shown
        record.prompt = min(body_bytes // BYTES_PER_TOKEN, record.estimate) + shown
        return shown

    async def _ground(
        self,
        options: RetrievalOptions,
        exchange: Exchange,
        route: Route,
        record: Record,
        body: dict[str, Any],
        reservation: Reservation | None,
        shown: int,
    ) -> None:
        """Add passages to the body, and charge their tokens to the key like the rest of the prompt.

        ``shown``: tokens of the version's examples, which come into the prompt later.
        """
        caller, target, injector = record.caller, record.target, route.injector
        if self._hook is None or caller is None or target is None or injector is None:
            raise Unavailable("grounding is not configured on this gateway", param=FIELD, code="grounding_unavailable")
        grounded = record.grounded = await self._hook.ground(
            options, caller, target.adapter, body, injector, reserved_tokens=shown
        )
        exchange.add_headers(list(grounded.headers))
        record.estimate += grounded.tokens
        record.prompt += grounded.tokens
        if reservation is not None:
            reservation.charge(grounded.tokens)
            exchange.add_headers(reservation.headers())

    async def _render(self, exchange: Exchange, target: Target, record: Record, body: dict[str, Any]) -> None:
        """Answer with the finished request; the key is charged for its prompt, by the estimate."""
        record.usage, record.counted = TokenUsage(), record.prompt
        await exchange.answer(200, rendered_prompt(body, target, record.grounded))

    async def _ask(
        self,
        exchange: Exchange,
        route: Route,
        caller: Caller,
        target: Target,
        record: Record,
        body: dict[str, Any],
        began: float,
    ) -> None:
        """Send the finished request to the engine, in its turn, and answer with what it says."""
        async with self._admit_structured_output(route, body, caller):
            call = Call(route.engine_path, self._payload(body, caller, target, route), began)
            entered = await self._enter(caller, target, record, route)
            if route.salted:
                await self._forward(exchange, route, target, record, call, body, entered)
            else:
                await self._count(exchange, route, target, record, call, entered)

    def _admit_structured_output(
        self, route: Route, body: dict[str, Any], caller: Caller
    ) -> AbstractAsyncContextManager[None, bool | None]:
        """Check the finished body's grammars against the limits, for as long as the request is in the engine."""
        if self._grammars is None or not route.generates:
            return nullcontext()
        return self._grammars.admitted(body, caller.project)

    async def _enter(self, caller: Caller, target: Target, record: Record, route: Route) -> Permit | None:
        """Wait for a place in the engine; a route that runs no model takes one of its tokenizer's."""
        queue = self._admission_queue if route.salted else self._counting
        if queue is None:
            return None
        request = AdmissionRequest(
            caller.project,
            caller.key_id,
            target.digest if route.salted else None,
            record.estimate,
            caller.background,
            record.prompt,
            target.flow if route.salted else None,
        )
        arrived = asyncio.get_running_loop().time()
        try:
            return await queue.enter(request, arrived + self._queue_timeout_s)
        finally:
            record.queue_s = asyncio.get_running_loop().time() - arrived

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self.in_flight >= self._max_in_flight:
            raise Unavailable(
                f"{self._max_in_flight} requests are in flight, the maximum (HATRACK_MAX_IN_FLIGHT); retry later",
                retry_after=OVERLOAD_RETRY_S,
                code="overloaded",
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _payload(self, body: dict[str, Any], caller: Caller, target: Target, route: Route) -> bytes:
        """The request body for the engine: the checked fields and those that only the gateway sets."""
        # the tokenizer is the base's: where no model runs, the engine need not load an adapter past the queue
        model = target.engine_model if route.salted else self.catalog.base_name
        payload = {**body, "model": model, **route.dialect.gateway_fields(body)}
        if route.salted:
            payload["cache_salt"] = self._salts.of(caller.project)
        return orjson.dumps(payload)

    async def _forward(
        self,
        exchange: Exchange,
        route: Route,
        target: Target,
        record: Record,
        call: Call,
        body: dict[str, Any],
        entered: Permit | None,
    ) -> None:
        """Run the model and relay its answer; releases the admission permit."""
        renamer = Renamer(target)
        in_engine = self._engine_clock.enter()
        try:
            with closing(await self._calls.send(call, record)) as response:
                if response.status != 200:
                    raise self._report_suspect(
                        engine_error(
                            response.status,
                            await response.read(),
                            target,
                            route.engine_path,
                            self.catalog.embedder_name,
                        ),
                        target,
                    )
                if record.stream:
                    relay: Relay = route.dialect.relay(renamer, body)
                    if record.grounded is not None:
                        relay = record.grounded.relay(relay)
                    try:
                        await self._stream(exchange, response, relay, record, call.began, entered)
                    finally:
                        record.usage = with_prompt(relay.counted(), record.prompt)
                    if relay.error is not None:
                        raise self._report_suspect(engine_error(200, relay.error, target, route.engine_path), target)
                    if not relay.done:
                        raise EngineCut("the engine's response ended early")
                    await exchange.finish()
                    return
                answer = await response.read()
            self._saw_tokens()
            record.usage = route.dialect.usage(answer)
            record.first_byte_s = time.perf_counter() - call.began
            answer = route.dialect.answer(answer, renamer)
            await exchange.answer(200, answer if record.grounded is None else record.grounded.cite(answer))
        finally:
            record.engine_s = self._engine_clock.leave(in_engine)
            if entered is not None:
                entered.leave(record.tokens, answered=record.reached)

    async def _count(
        self, exchange: Exchange, route: Route, target: Target, record: Record, call: Call, entered: Permit | None
    ) -> None:
        """Answer from the engine's tokenizer; the permit is released when it has answered."""
        answer, tokens = await self._calls.count(call, record, target, route.count, entered)
        # the model did not run, so no tokens were used; the key is charged for the counted ones
        record.usage, record.counted = TokenUsage(), tokens
        record.first_byte_s = time.perf_counter() - call.began
        await exchange.answer(200, route.dialect.answer(answer, Renamer(target)))

    async def _stream(
        self,
        exchange: Exchange,
        response: UpstreamResponse,
        relay: Relay,
        record: Record,
        began: float,
        entered: Permit | None,
    ) -> None:
        """Relay until the engine's last event or its error event; the response starts with the first good event."""
        feed, write, saw_tokens, clock = relay.feed, exchange.write, self._saw_tokens, time.perf_counter
        last, gap = began, record.gaps.append
        async for chunk in response.chunks():
            events = feed(chunk)
            if events:
                saw_tokens()
                now = clock()
                if exchange.started:
                    gap(now - last)
                else:
                    record.first_byte_s = now - began
                    if entered is not None:
                        entered.first_token()
                    await exchange.start_events(relay.error_event)
                last = now
                await write(events)
            if relay.error is not None:
                return

    def _report_suspect(self, error: HatrackError, target: Target) -> HatrackError:
        """Report the adapter as a suspect if the error code is evidence against its weights; returns ``error``.

        Other failures are not reported: a caller's input may break the engine's code without a fault in the adapter.
        """
        if target.digest and error.code in ADAPTER_FAULT_CODES:
            self._suspect(target.digest)
        return error

    async def _fail(self, exchange: Exchange, record: Record, error: HatrackError) -> None:
        if exchange.started:
            record.outcome = "cut"
        else:
            record.outcome = "refused" if error.status < 500 else "failed"
        record.code = error.code
        await exchange.fail(error)


def _take_grounding(route: Route, body: dict[str, Any], target: Target, caller: Caller) -> RetrievalOptions | None:
    """What to retrieve, as request and version say; the request's part is taken out of its body."""
    grounding, file_search = route.dialect.take_grounding(body)
    if route.injector is None:
        return None
    return retrieval_options(grounding, target.settings.grounding, caller.filters, file_search)


def _name_adapter(exchange: Exchange, target: Target) -> None:
    if target.adapter is not None:
        exchange.add_header(b"x-hatrack-adapter", target.name)
    if target.digest is not None:
        exchange.add_header(b"x-hatrack-digest", target.digest)
