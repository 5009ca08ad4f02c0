"""The inference pipeline: everything that happens to one request, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from types import MappingProxyType
from typing import Any, Final, Protocol

from service.access.authentication import Authenticator
from service.access.caller import Caller, Scope
from service.access.limits import Reservation
from service.admission.estimate import BYTES_PER_TOKEN, estimate
from service.config import MIB, Settings
from service.errors import HatrackError, Unavailable, to_hatrack_error
from service.grounding.fields import FIELD, RetrievalOptions, retrieval_options
from service.grounding.hook import Hook
from service.http.checks import parse_body
from service.http.stream import TokenUsage
from service.inference.dialect import Route
from service.inference.dispatch import Dispatch, FinishedRequest
from service.inference.embedding import EmbeddingRequests
from service.inference.engines import BaseLimits, Dispatches
from service.inference.exchange import CLIENT_LEFT, ClientLeft, Exchange
from service.inference.fields import check_body
from service.inference.in_flight import InFlight
from service.inference.length import PromptLimit
from service.inference.prompt import rendered_prompt
from service.inference.relay import PassedEvents
from service.inference.sticky import resolve
from service.registry.catalog import Catalog, Target
from service.structured.checker import StructuredOutputs
from service.telemetry.record import Account, LogAccount, Record
from service.telemetry.traces import Traces

STOPPED: Final = "this server was stopped before the answer was complete; send the request again"


class Limiter(Protocol):
    """Holds keys to their limits; ``service.access.limits.KeyLimiter`` is the gateway's."""

    def enter(self, caller: Caller) -> Reservation:
        """Count a request on arrival. Raises RateLimited."""


class Elsewhere(Protocol):
    """Another process that answers some requests, to which they are passed as they came."""

    def serves(self, target: Target) -> bool:
        """Whether it answers whatever is asked of a target."""

    def answers(self, target: Target, body: dict[str, Any], options: RetrievalOptions | None) -> bool:
        """Whether it answers this request, whose fields are checked."""

    async def forward(self, exchange: Exchange, raw: bytes, events: PassedEvents) -> None:
        """Have it answered; ``events`` takes its answer where that is a stream.

        Raises Unavailable if the other process cannot be reached.
        """


class Pipeline:
    """Runs inference requests.

    Args:
        dispatch: Gives the finished requests their turn at the engine.
        account: Called with the record of every inference request once it is over.
        limiter: Enforces the keys' limits; None: no limits.
        tracer: Begins a trace for each request; None: no traces.
        hook: Retrieves passages for grounded requests; None: those are refused.
        prompt_limit: The longest prompt; None: derived from the settings' context only.
        grammars: Checks structured outputs; None: they go to the engine unchecked.
        limits: What other bases than the default demand, by their served names.
        check_budget: Refuses requests of projects whose budget is spent.
        embeddings: Answers requests to the embedder; None: there is none.
        elsewhere: Takes what another process answers; None: nothing.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        catalog: Catalog,
        dispatch: Dispatch | Dispatches,
        *,
        account: Account | None = None,
        limiter: Limiter | None = None,
        tracer: Traces | None = None,
        hook: Hook | None = None,
        prompt_limit: PromptLimit | None = None,
        grammars: StructuredOutputs | None = None,
        limits: Mapping[str, BaseLimits] = MappingProxyType({}),
        check_budget: Callable[[Caller], None] = lambda caller: None,
        embeddings: EmbeddingRequests | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._max_body = int(settings.max_body_mib * MIB)
        self._pass_unknown = settings.unknown_fields == "pass"
        self._timeout_s = settings.request_timeout_s
        self._in_flight = InFlight(settings.max_in_flight)
        self.authenticator = authenticator
        self.catalog = catalog
        self._dispatch = dispatch
        self._account = account or LogAccount()
        self._limiter = limiter
        self._default_limits = BaseLimits(prompt_limit or PromptLimit(settings.context), grammars, settings.context)
        self._limits = limits
        self._tracer = tracer
        self._hook = hook
        self._check_budget = check_budget
        self._embeddings = embeddings
        self._elsewhere = elsewhere

    @property
    def in_flight(self) -> int:
        """Requests that are worked on now."""
        return self._in_flight.count

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
            if self._elsewhere is not None and self._elsewhere.serves(target):
                await self._forward(self._elsewhere, exchange, route, record, raw)
                return
            if target.embeds and self._embeddings is not None:  # it has a process, fields and a queue of its own
                with self._in_flight.enter(caller.project):
                    await self._embeddings.answer(exchange, caller, target, record, body, reservation, began)
                return
            options = self._check_fields(route, caller, target, body, len(raw))
            record.stream = bool(body.get("stream"))
            if self._elsewhere is not None and self._elsewhere.answers(target, body, options):
                await self._forward(self._elsewhere, exchange, route, record, raw)
                return
            shown = self._estimate(record, route, target, body, len(raw))
            exchange.name_adapter(None if target.adapter is None else target.name, target.digest)
            if reservation is not None:
                if (charged := reservation.charge(record.estimate)) is not None:
                    await charged
                if options is None:
                    exchange.add_headers(reservation.headers())
            with self._in_flight.enter(caller.project):
                route.dialect.apply_settings(body, target.settings, route.table, generates=route.generates)
                request = FinishedRequest(exchange, route, caller, target, record, body, began)
                async with exchange.cancel_on_disconnect(self._timeout_s):
                    await self._finish(request, options, reservation, shown)
        except ClientLeft:
            exchange.status, record.outcome, record.code = CLIENT_LEFT, "left", "client_left"
        except asyncio.CancelledError:
            record.outcome, record.code = "cut", "shutdown"
            await exchange.cut(Unavailable(STOPPED, code="shutdown"))
            raise
        except Exception as error:
            await self._fail(exchange, record, to_hatrack_error(error, exchange.request_id))
        finally:
            if reservation is not None and not record.forwarded:
                reservation.close(record.tokens)
            record.status = exchange.status
            record.total_s = time.perf_counter() - began
            self._account(record)

    async def _finish(
        self, request: FinishedRequest, options: RetrievalOptions | None, reservation: Reservation | None, shown: int
    ) -> None:
        """Add what the prompt still lacks, and have the request answered. ``shown``: as `_ground`."""
        exchange, route, target = request.exchange, request.route, request.target
        record, body = request.record, request.body
        if options is not None:
            await self._ground(options, exchange, route, record, body, reservation, shown)
        if shown:  # after the passages: no example's question is taken for the request's own
            route.dialect.add_examples(body, target.settings.example_messages)
        if route.renders:
            await self._render(exchange, target, record, body)
            return
        if self._dispatch.is_cold(route, target):  # before it takes what its project's others need
            await self._dispatch.bring(target, record)
        async with self._admit_structured_output(route, target, body, request.caller):
            await self._dispatch.answer(request)

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
        prompt_limit = self._limits_of(target).prompt_limit
        prompt_limit.check_ids(body, size)
        check_body(body, route.table, route.required, pass_unknown=self._pass_unknown)
        grounding, file_search = route.dialect.take_grounding(body)
        options = None
        if route.injector is not None:
            options = retrieval_options(grounding, target.settings.grounding, caller.filters, file_search)
        route.dialect.force_tools(body)
        prompt_limit.check_text(body, size, only_tokenizes=not route.salted)
        return options

    def _estimate(self, record: Record, route: Route, target: Target, body: dict[str, Any], body_bytes: int) -> int:
        """Note how many tokens the request may take, passages aside; returns those of the version's own examples."""
        shown = target.settings.example_tokens if route.dialect.turns in body else 0
        context = self._limits_of(target).context
        record.estimate = estimate(body, body_bytes, context, answers=route.generates) + shown
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
            if (charged := reservation.charge(grounded.tokens)) is not None:
                await charged
            exchange.add_headers(reservation.headers())

    async def _forward(
        self, elsewhere: Elsewhere, exchange: Exchange, route: Route, record: Record, raw: bytes
    ) -> None:
        record.forwarded = True
        try:
            async with exchange.cancel_on_disconnect(self._timeout_s):
                await elsewhere.forward(exchange, raw, PassedEvents(route.dialect.error_event))
        except Unavailable:
            record.forwarded = False  # nobody else has seen it
            raise

    async def _render(self, exchange: Exchange, target: Target, record: Record, body: dict[str, Any]) -> None:
        """Answer with the finished request; the key is charged for its prompt, by the estimate."""
        record.usage, record.counted = TokenUsage(), record.prompt
        await exchange.answer(200, rendered_prompt(body, target, record.grounded))

    def _admit_structured_output(
        self, route: Route, target: Target, body: dict[str, Any], caller: Caller
    ) -> AbstractAsyncContextManager[None, bool | None]:
        """Check the finished body's grammars against the limits, for as long as the request is in the engine."""
        grammars = self._limits_of(target).grammars
        if grammars is None or not route.generates:
            return nullcontext()
        return grammars.admitted(body, caller.project)

    def _limits_of(self, target: Target) -> BaseLimits:
        return self._limits.get(target.base, self._default_limits)

    async def _fail(self, exchange: Exchange, record: Record, error: HatrackError) -> None:
        if exchange.started:
            record.outcome = "cut"
        else:
            record.outcome = "refused" if error.status < 500 else "failed"
        record.code = error.code
        await exchange.fail(error)
