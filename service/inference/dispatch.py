"""The engine's side of an inference request: its turn at the engine, and the answer's way to the client.

What concerns the caller (keys, limits, versions, grounding) is settled before, in ``service.inference.pipeline``. What
is here belongs to one engine and knows neither keys nor catalog: the seam along which a gateway can be cut in two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import orjson

from service.access.caller import Caller
from service.admission.ports import Permit, Queue
from service.admission.request import AdmissionRequest
from service.config import Settings
from service.engine.busy import EngineClock, EngineTime
from service.engine.contract import ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE
from service.errors import EngineCut, HatrackError
from service.http.stream import Relay, TokenUsage
from service.inference.calls import CacheSalts, Call, EngineCalls, with_prompt
from service.inference.dialect import Route
from service.inference.exchange import Exchange
from service.inference.relay import Renamer, check_answer, engine_error, renamer_for
from service.inference.upstream import Upstream, UpstreamResponse
from service.objects.adapters import hold_before
from service.objects.cache import Copies
from service.registry.catalog import Target
from service.telemetry.record import Record

ReportSuspect = Callable[[str], None]
"""Called with the digest of an adapter whose request failed in the engine; must be quick and must not raise."""

ADAPTER_FAULT_CODES = frozenset({ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE})
"""Error codes that are evidence of a fault in an adapter's weights or files."""


class FinishedRequest(NamedTuple):
    """A request as the engine is to get it: checked, grounded, with its version's settings.

    ``began`` is its arrival at the gateway, on the performance counter.
    """

    exchange: Exchange
    route: Route
    caller: Caller
    target: Target
    record: Record
    body: dict[str, Any]
    began: float


class Dispatch:
    """Gives requests their turn at one engine, and relays its answers.

    Args:
        engine: The engine's client.
        base_name: The model that the engine serves without an adapter.
        embedder_name: The model that answers embeddings beside the engine, for error messages; None: there is none.
        suspect: Called with the digest of an adapter whose request failed in the engine.
        saw_tokens: Called whenever the engine sent output: a sign of life.
        admission_queue: Fair admission; None: requests go straight to the engine.
        counting: Fair admission to the engine's tokenizer, for routes that run no model; None: no limit.
        engine_clock: Measures each request's share of the engine's time; None: one of its own.
        copies: The local copies of adapters' files, which the engine reads; None: they are all there.
        salts: Of the projects' prefix caches; None: of its own.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Upstream,
        base_name: str,
        *,
        embedder_name: str | None = None,
        suspect: ReportSuspect = lambda digest: None,
        saw_tokens: Callable[[], None] = lambda: None,
        admission_queue: Queue | None = None,
        counting: Queue | None = None,
        engine_clock: EngineTime | None = None,
        copies: Copies | None = None,
        salts: CacheSalts | None = None,
    ) -> None:
        self._copies = copies
        self._calls = EngineCalls(engine, saw_tokens, settings.request_timeout_s)
        self._base_name = base_name
        self._embedder_name = embedder_name
        self._suspect = suspect
        self._saw_tokens = saw_tokens
        self._admission_queue = admission_queue
        self._counting = counting
        self._engine_clock = engine_clock or EngineClock()
        self._queue_timeout_s = settings.queue_timeout_s
        self._salts = salts or CacheSalts()

    def is_cold(self, route: Route, target: Target) -> bool:
        """Whether the engine needs files that ``bring`` must fetch first."""
        copies, digest = self._copies, target.digest
        return copies is not None and digest is not None and route.salted and not copies.is_here(digest)

    async def bring(self, target: Target, record: Record) -> None:
        """Fetch an adapter's files. The wait for them counts as one in the queue.

        Raises:
            Unavailable: They have not come in time.
            StoreUnavailable: The object store does not answer.
            Conflict: It has lost them.
        """
        if self._copies is not None and target.digest is not None:
            await self._hold(self._copies, target.digest, record)
            self._copies.release(target.digest)

    async def answer(self, request: FinishedRequest) -> None:
        """Send the request to the engine, in its turn, and answer its client with what the engine says.

        Raises:
            HatrackError: There was no turn in time, or no files before, or the engine failed; the client may have had
                a part of the answer.
            StoreUnavailable: The adapter's files have to be fetched, and the object store does not answer.
        """
        copies, digest = self._copies, request.target.digest
        if copies is None or digest is None or not request.route.salted:
            await self._answer(request)
            return
        # before it waits for its turn: a cold adapter takes nobody's place; mostly `bring` has been called
        await self._hold(copies, digest, request.record)
        try:
            await self._answer(request)
        finally:
            copies.release(digest)

    async def _hold(self, copies: Copies, digest: str, record: Record) -> None:
        if copies.try_hold(digest):
            return
        began = asyncio.get_running_loop().time()
        try:
            await hold_before(copies, digest, began + self._patience_s(record))
        finally:
            record.fetch_s += asyncio.get_running_loop().time() - began

    def _patience_s(self, record: Record) -> float:
        """How much longer a request may wait, for its adapter's files and in queues together."""
        waited_s = record.queue_s or 0.0  # for another engine, which went away
        return self._queue_timeout_s - waited_s - record.fetch_s

    async def _answer(self, request: FinishedRequest) -> None:
        call = Call(request.route.engine_path, self._payload(request), request.began)
        permit = None
        queue = self._admission_queue if request.route.salted else self._counting
        if queue is not None:
            admission = _admission_request(request)
            permit = queue.try_enter(admission)
            if permit is None:
                permit = await self._enter(queue, admission, request.record)
            else:
                request.record.queue_s = request.record.queue_s or 0.0
        if request.route.salted:
            await self._forward(request, call, permit)
        else:
            await self._count(request, call, permit)

    def _payload(self, request: FinishedRequest) -> bytes:
        """The request body for the engine: the checked fields and those that only the gateway sets."""
        body, route = request.body, request.route
        # the tokenizer is the base's: where no model runs, the engine need not load an adapter past the queue
        model = request.target.engine_model if route.salted else self._base_name
        payload = {**body, "model": model, **route.dialect.gateway_fields(body)}
        if route.salted:
            payload["cache_salt"] = self._salts.of(request.caller.project)
        return orjson.dumps(payload)

    async def _enter(self, queue: Queue, admission: AdmissionRequest, record: Record) -> Permit:
        """Wait for a place in the engine, and count the time."""
        waited_s = record.queue_s or 0.0
        arrived = asyncio.get_running_loop().time()
        try:
            return await queue.enter(admission, arrived + self._patience_s(record))
        finally:
            record.queue_s = waited_s + asyncio.get_running_loop().time() - arrived

    async def _forward(self, request: FinishedRequest, call: Call, permit: Permit | None) -> None:
        """Run the model and relay its answer; releases the admission permit."""
        record, target, route, exchange = request.record, request.target, request.route, request.exchange
        renamer = renamer_for(target)
        in_engine = self._engine_clock.enter()
        try:
            with closing(await self._calls.send(call, record)) as response:
                if response.status != 200:
                    error = engine_error(
                        response.status, await response.read(), target, route.engine_path, self._embedder_name
                    )
                    raise self._report_suspect(error, target)
                if record.stream:
                    await self._stream(request, response, renamer, permit)
                    return
                answer = await response.read()
            parsed: dict[str, Any] | None = None
            try:
                parsed = check_answer(answer, route.member, target)
            finally:  # what the engine counted is charged even where its answer is not valid
                record.usage = route.dialect.usage(answer, parsed)
            self._saw_tokens()
            record.first_byte_s = time.perf_counter() - call.began
            answer = route.dialect.answer(answer, renamer)
            await exchange.answer(200, answer if record.grounded is None else record.grounded.cite(answer))
        finally:
            record.engine_s = self._engine_clock.leave(in_engine)
            if permit is not None:
                permit.leave(record.tokens, answered=record.reached)

    async def _count(self, request: FinishedRequest, call: Call, permit: Permit | None) -> None:
        """Answer from the engine's tokenizer; the permit is released when it has answered."""
        record, target, route = request.record, request.target, request.route
        answer, tokens = await self._calls.count(call, record, target, route.count, permit)
        # the model did not run, so no tokens were used; the key is charged for the counted ones
        record.usage, record.counted = TokenUsage(), tokens
        record.first_byte_s = time.perf_counter() - call.began
        await request.exchange.answer(200, route.dialect.answer(answer, renamer_for(target)))

    async def _stream(
        self, request: FinishedRequest, response: UpstreamResponse, renamer: Renamer, permit: Permit | None
    ) -> None:
        """Relay the engine's events to the client, to the last."""
        record, target, route = request.record, request.target, request.route
        relay: Relay = route.dialect.relay(renamer, request.body)
        if record.grounded is not None:
            relay = record.grounded.relay(relay)
        try:
            await self._relay(request, response, relay, permit)
        finally:
            record.usage = with_prompt(relay.counted(), record.prompt)
        if relay.error is not None:
            raise self._report_suspect(engine_error(200, relay.error, target, route.engine_path), target)
        if not relay.done:
            raise EngineCut("the engine's response ended early")
        await request.exchange.finish()

    async def _relay(
        self, request: FinishedRequest, response: UpstreamResponse, relay: Relay, permit: Permit | None
    ) -> None:
        """Relay until the engine's last event or its error event; the response starts with the first good event."""
        exchange, record, began = request.exchange, request.record, request.began
        feed, write_now, saw_tokens, clock = relay.feed, exchange.write_now, self._saw_tokens, time.perf_counter
        last, gap = began, record.gaps.append
        pending = b""

        def take(chunk: bytes) -> bool:
            nonlocal pending, last
            pending = feed(chunk)
            if pending:
                saw_tokens()
                now = clock()
                if exchange.started:
                    gap(now - last)
                    if write_now(pending):
                        pending = b""
                last = now
            return not pending and relay.error is None

        while True:
            is_over = await response.pass_to(take)
            if pending:
                if not exchange.started:
                    record.first_byte_s = last - began
                    if permit is not None:
                        permit.first_token()
                    await exchange.start_events(relay.error_event)
                await exchange.write(pending)
                pending = b""
            if is_over or relay.error is not None:
                return

    def _report_suspect(self, error: HatrackError, target: Target) -> HatrackError:
        """Report the adapter as a suspect if the error code is evidence against its weights; returns ``error``.

        Other failures are not reported: a caller's input may break the engine's code without a fault in the adapter.
        """
        if target.digest and error.code in ADAPTER_FAULT_CODES:
            self._suspect(target.digest)
        return error


def _admission_request(request: FinishedRequest) -> AdmissionRequest:
    """What the queue is to know; a route that runs no model takes a place of the engine's tokenizer, and no adapter."""
    caller, target, record, runs_model = request.caller, request.target, request.record, request.route.salted
    return AdmissionRequest(
        caller.project,
        caller.key_id,
        target.digest if runs_model else None,
        record.estimate,
        caller.background,
        record.prompt,
        target.flow if runs_model else None,
    )
