"""What happens to an inference request, from top to bottom."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson

from service.access.authentication import Authenticator
from service.access.caller import Caller, Scope
from service.admission.ticket import Ticket
from service.config import MIB, Settings
from service.engine.contract import ENGINE_NOT_FINITE
from service.errors import AdapterNotFinite, BadGateway, BadRequest, HatrackError, Internal, Unavailable
from service.grounding.fields import FIELD, Wish, wish_of
from service.grounding.hook import Hook
from service.grounding.places import Place
from service.inference.account import Account, Record
from service.inference.dialect import OPENAI, Dialect
from service.inference.estimate import BYTES_A_TOKEN, estimate
from service.inference.exchange import CLIENT_LEFT, ClientLeft, Exchange
from service.inference.fields import Table, check_body
from service.inference.ports import Gate, Lease, Limiter, Pass, Relay, Tracer
from service.inference.relay import Renamer, Usage, engine_error
from service.inference.sticky import sticky
from service.inference.upstream import Upstream, UpstreamResponse
from service.registry.catalog import Catalog, Target

Suspect = Callable[[str], None]
"""Is told the digest of an adapter whose request failed in the engine; must be quick and must not raise."""

MAX_DEPTH = 64
OVERLOAD_RETRY_S = 1
MAX_SALTS = 4096
"""Projects whose salt is remembered, not made anew."""
_LOG = logging.getLogger("hatrack.inference")


@dataclass(frozen=True, slots=True)
class Route:
    """One inference route: its path at the engine, its fields, and what it makes of them."""

    engine_path: str
    table: Table
    required: tuple[str, ...]
    generates: bool = False
    """Sampling defaults apply, and it can stream."""
    salted: bool = False
    """The engine's route takes a `cache_salt`: the model itself runs, and counts its tokens."""
    dialect: Dialect = OPENAI
    place: Place | None = None
    """Where passages and citations go; None: its requests are not grounded."""


class Pipeline:
    """Runs requests; holds what they share."""

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        catalog: Catalog,
        engine: Upstream,
        *,
        account: Account,
        suspect: Suspect,
        saw_tokens: Callable[[], None],
        limiter: Limiter | None = None,
        gate: Gate | None = None,
        tracer: Tracer | None = None,
        hook: Hook | None = None,
    ) -> None:
        self._max_body = int(settings.max_body_mib * MIB)
        self._pass_unknown = settings.unknown_fields == "pass"
        self._timeout_s = settings.request_timeout_s
        self._max_in_flight = settings.max_in_flight
        self._authenticator = authenticator
        self._catalog = catalog
        self._engine = engine
        self._account = account
        self._suspect = suspect
        self._saw_tokens = saw_tokens
        self._limiter = limiter
        self._gate = gate
        self._tracer = tracer
        self._hook = hook
        self._context = settings.context
        self._queue_timeout_s = settings.queue_timeout_s
        self._salt = secrets.token_bytes(32)
        self._salts: dict[str, str] = {}
        self.in_flight = 0

    async def infer(self, route: Route, exchange: Exchange) -> None:
        """Answer one request; every error is told to the client, and every request is accounted for."""
        record = Record(request_id=exchange.request_id, route=exchange.path)
        began = time.perf_counter()
        lease: Lease | None = None
        try:
            if self._tracer is not None:
                record.span = self._tracer.begin(exchange.path, exchange.headers, exchange.request_id)
            caller = record.caller = self._authenticator.authenticate(exchange.headers)
            caller.demand(Scope.INFER)
            if self._limiter is not None:
                lease = self._limiter.enter(caller)
            raw = await exchange.read_json_body(self._max_body)
            body = parse(raw)
            target = record.target = self._resolve(caller, body, exchange.headers)
            check_body(body, route.table, route.required, pass_unknown=self._pass_unknown)
            wish = None if route.place is None else wish_of(body.pop(FIELD, None), target.settings.grounding)
            record.stream = bool(body.get("stream"))
            record.estimate = estimate(body, len(raw), self._context, answers=route.generates)
            record.prompt = min(len(raw) // BYTES_A_TOKEN, record.estimate)
            _name_adapter(exchange, target)
            if lease is not None:
                lease.charge(record.estimate)
                if wish is None:
                    exchange.add_headers(lease.headers())
            with self._admitted():
                route.dialect.apply_settings(body, target.settings, route.table, generates=route.generates)
                async with exchange.leash(self._timeout_s):
                    if wish is not None:
                        await self._ground(wish, exchange, route, record, body, lease)
                    payload = self._payload(body, caller, target, route)
                    # a route that runs no model takes no place in the engine
                    entered = await self._enter(caller, target, record) if route.salted else None
                    try:
                        await self._forward(exchange, route, target, record, payload, body, began, entered)
                    finally:
                        if entered is not None:
                            entered.leave(record.tokens)
        except ClientLeft:
            exchange.status, record.outcome, record.code = CLIENT_LEFT, "left", "client_left"
        except asyncio.CancelledError:
            record.outcome, record.code = "cut", "shutdown"
            raise
        except HatrackError as error:
            await self._fail(exchange, record, error)
        except Exception:
            _LOG.exception("an inference request failed", extra={"request_id": exchange.request_id})
            await self._fail(exchange, record, Internal("the gateway failed; its log has the reason"))
        finally:
            if lease is not None:
                lease.close(record.tokens)
            record.status = exchange.status
            record.total_s = time.perf_counter() - began
            self._account(record)

    async def _ground(
        self, wish: Wish, exchange: Exchange, route: Route, record: Record, body: dict[str, Any], lease: Lease | None
    ) -> None:
        """Put passages into the body; the caller pays for them as for the rest of the prompt."""
        caller, target, place = record.caller, record.target, route.place
        if self._hook is None or caller is None or target is None or place is None:
            raise Unavailable("this gateway has no grounding", param=FIELD, code="grounding_unavailable")
        grounded = record.grounded = await self._hook.ground(wish, caller, target, body, place)
        exchange.add_headers(list(grounded.headers))
        record.estimate += grounded.tokens
        record.prompt += grounded.tokens
        if lease is not None:
            lease.charge(grounded.tokens)
            exchange.add_headers(lease.headers())

    async def _enter(self, caller: Caller, target: Target, record: Record) -> Pass | None:
        """Wait at the gate for a place in the engine."""
        if self._gate is None:
            return None
        ticket = Ticket(
            caller.project,
            caller.key_id,
            target.digest,
            record.estimate,
            caller.background,
            record.prompt,
        )
        came = asyncio.get_running_loop().time()
        try:
            return await self._gate.enter(ticket, came + self._queue_timeout_s)
        finally:
            record.queue_s = asyncio.get_running_loop().time() - came

    def _resolve(self, caller: Caller, body: dict[str, Any], headers: Mapping[str, str]) -> Target:
        model, adapter = body.pop("model", None), body.pop("adapter", None)
        if not isinstance(model, str):
            raise BadRequest("`model` must be a string", param="model", code="missing_required_parameter")
        if adapter is not None and not isinstance(adapter, str):
            raise BadRequest("`adapter` must be a string", param="adapter")
        return self._catalog.resolve(caller, model, adapter, sticky=sticky(body, headers))

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self.in_flight >= self._max_in_flight:
            raise Unavailable(
                f"{self._max_in_flight} requests are in work, no more are taken now (HATRACK_MAX_IN_FLIGHT)",
                retry_after=OVERLOAD_RETRY_S,
                code="overloaded",
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _payload(self, body: dict[str, Any], caller: Caller, target: Target, route: Route) -> bytes:
        """The engine's request: the checked fields, and what only the gateway sets."""
        # the tokenizer is the base's: where no model runs, the engine need not load an adapter past the gate
        model = target.engine_model if route.salted else self._catalog.base_name
        sent = {**body, "model": model, **route.dialect.fixed(body)}
        if route.salted:
            # projects share no prefix cache: how fast an answer comes would tell one what another has asked
            sent["cache_salt"] = self._salt_of(caller.project)
        return orjson.dumps(sent)

    def _salt_of(self, project: str) -> str:
        salt = self._salts.get(project)
        if salt is None:
            if len(self._salts) >= MAX_SALTS:
                self._salts = {}
            salt = hashlib.blake2b(project.encode(), key=self._salt, digest_size=16).hexdigest()
            self._salts[project] = salt
        return salt

    async def _forward(
        self,
        exchange: Exchange,
        route: Route,
        target: Target,
        record: Record,
        payload: bytes,
        body: dict[str, Any],
        began: float,
        entered: Pass | None,
    ) -> None:
        # the engine's request ids must be unique, a client's need not be: the engine gets one of our own
        headers = {"content-type": "application/json", "x-request-id": secrets.token_hex(16)}
        if record.span is not None:
            headers.update(record.span.headers)
        renamer = Renamer(target)
        record.sent_s = time.perf_counter() - began
        async with self._engine.open(route.engine_path, payload, headers) as response:
            if response.status != 200:
                raise self._blamed(
                    engine_error(response.status, await response.read(), target, route.engine_path), target
                )
            record.reached = True
            if record.stream:
                relay: Relay = route.dialect.relay(renamer, body)
                if record.grounded is not None:
                    relay = record.grounded.relay(relay)
                try:
                    await self._stream(exchange, response, relay, record, began, entered)
                finally:
                    record.usage = _with_prompt(relay.counted(), record.prompt)
                if relay.error is not None:
                    raise self._blamed(engine_error(200, relay.error, target, route.engine_path), target)
                if not relay.done:
                    raise BadGateway("the engine's answer ended before its end", code="engine_cut")
                await exchange.finish()
                return
            answer = await response.read()
        self._saw_tokens()
        # where the model did not run, no token was used
        record.usage = route.dialect.usage(answer) if route.salted else Usage()
        record.first_byte_s = time.perf_counter() - began
        answer = route.dialect.answer(answer, renamer)
        await exchange.answer(200, answer if record.grounded is None else record.grounded.cite(answer))

    async def _stream(
        self,
        exchange: Exchange,
        response: UpstreamResponse,
        relay: Relay,
        record: Record,
        began: float,
        entered: Pass | None,
    ) -> None:
        """Relay until the engine's end or its error event; begins the answer only with the first good event."""
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
                    await exchange.start_events(relay.last_words)
                last = now
                await write(events)
            if relay.error is not None:
                return

    def _blamed(self, error: HatrackError, target: Target) -> HatrackError:
        """``error``, after the adapter was named as a suspect where the engine itself answered with a failure."""
        if target.digest and isinstance(error, (AdapterNotFinite, BadGateway)) and error.code != ENGINE_NOT_FINITE:
            self._suspect(target.digest)
        return error

    async def _fail(self, exchange: Exchange, record: Record, error: HatrackError) -> None:
        if exchange.started:
            record.outcome = "cut"
        else:
            record.outcome = "refused" if error.status < 500 else "failed"
        record.code = error.code
        await exchange.fail(error)


def parse(raw: bytes) -> dict[str, Any]:
    """The body as an object.

    The parser is strict (UTF-8, no NaN or Infinity) and of a repeated key the last counts; the engine gets what was
    understood here, written anew.

    Raises:
        BadRequest: It is not JSON, not an object, or nested deeper than MAX_DEPTH.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at byte {error.pos}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    return body


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            inner.extend(
                v for v in (value.values() if isinstance(value, dict) else value) if isinstance(v, (dict, list))
            )
        if not inner:
            return
        level = inner
    raise BadRequest(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _with_prompt(usage: Usage | None, prompt: int) -> Usage | None:
    """A count that a leaving client cut short, with the prompt's estimate: whoever leaves early pays for it as well."""
    if usage is None or usage.exact or usage.prompt_tokens:
        return usage
    return replace(usage, prompt_tokens=prompt)


def _name_adapter(exchange: Exchange, target: Target) -> None:
    if target.digest is not None:
        exchange.add_header(b"x-hatrack-adapter", target.name)
        exchange.add_header(b"x-hatrack-digest", target.digest)
