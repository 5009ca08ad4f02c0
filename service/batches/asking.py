"""Asks one request of a batch through the data path, inside the process, and says when to ask it again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from service.access.caller import Caller
from service.errors import HatrackError, RequestOverQuota
from service.http.disconnect import DISCONNECT, Disconnect
from service.inference.exchange import Exchange
from service.inference.routes import InferenceApp
from service.inference.sticky import resolve

PEER: Final = "batch"
"""Stands for the client's address in the audit."""
MAX_ATTEMPTS: Final = 3
"""How often a request is sent that the gateway or the engine fails to answer."""
RETRY_STEP_S: Final = 1.0
"""Wait before the second time, s; doubled before each further one."""
DEFAULT_WAIT_S: Final = 5.0
ENGINE_UNAVAILABLE: Final = "engine_unavailable"
WAIT_CODES: Final = frozenset({ENGINE_UNAVAILABLE, "queue_timeout", "overloaded", "store_unavailable"})
"""Codes of a 503 that say nothing about the request: it is asked until it is answered or the batch expires."""

GROUNDING_CODES: Final = frozenset({"grounding_unavailable", "embedder_unavailable"})
"""Codes of a 503 while what finds passages, or embeds, starts or is broken."""
UNGROUNDED: Final = frozenset({"late", "broken"})
"""Values of `x-hatrack-grounding` of an answer that was made without passages, because they could not be found."""
GROUNDING_WAIT_S: Final = 600.0
"""How long a batch waits for passages or the embedder, all its waits together, s: a start takes less, and what is
broken for good must not keep it from its end."""
GROUNDING_STEP_S: Final = 5.0
"""The first such wait, s; doubled before each further one, up to GROUNDING_MAX_STEP_S."""
GROUNDING_MAX_STEP_S: Final = 60.0
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request: its body is JSON in one line; names of headers are in lower case.

    An answer may be 200 MiB of log-probabilities: only a refusal is parsed.
    """

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")

    @property
    def error(self) -> dict[str, Any]:
        """The error in the body of a refusal; empty if there is none."""
        if self.status == 200:
            return {}
        body = orjson.loads(self.body)
        error = body.get("error") if isinstance(body, dict) else None
        return error if isinstance(error, dict) else {}

    @property
    def lacks_passages(self) -> bool:
        """Whether it, or the refusal in its place, is for want of passages or of the embedder."""
        if self.status == 200:
            return self.headers.get("x-hatrack-grounding") in UNGROUNDED
        return self.status == 503 and self.error.get("code") in GROUNDING_CODES


class Ask(Protocol):
    """Sends requests with a caller's rights; ``caller.background`` makes them yield to others."""

    async def __call__(self, caller: Caller, endpoint: str, body: bytes) -> Answer:
        """The answer, whatever its status."""

    def check(self, caller: Caller, endpoint: str, body: bytes) -> str:
        """Check a body without asking; returns the name of its model. Raises HatrackError if it would be refused."""

    def base_of(self, caller: Caller, body: Mapping[str, Any]) -> str | None:
        """The served name of the base that is to answer; None: no engine is asked, or the request is refused."""


class DataPath:
    """``Ask`` through the gateway's own data path: limits, budgets, queue, usage, metrics and traces are a client's."""

    def __init__(self, inference: InferenceApp) -> None:
        self._inference = inference

    def check(self, caller: Caller, endpoint: str, body: bytes) -> str:
        return self._inference.pipeline.check(self._inference.routes[endpoint], caller, body).label

    def base_of(self, caller: Caller, body: Mapping[str, Any]) -> str | None:
        catalog = self._inference.pipeline.catalog
        try:
            target = resolve(catalog, caller, dict(body), {})
        except HatrackError:
            return None  # its answer says why
        return None if target.embeds else target.base or catalog.base_name

    async def __call__(self, caller: Caller, endpoint: str, body: bytes) -> Answer:
        route = self._inference.routes[endpoint]
        pending: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            return pending.pop() if pending else await asyncio.Future()

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": endpoint,
            "headers": [(b"content-type", b"application/json")],
            "client": (PEER, 0),
            "state": {DISCONNECT: Disconnect(lambda: None)},
        }
        exchange = Exchange(scope, receive, send)
        exchange.set_dialect(route.dialect.error_body, route.dialect.id_header)
        await self._inference.pipeline.infer(route, exchange, caller)
        return _answer(sent)


def _answer(sent: list[MutableMapping[str, Any]]) -> Answer:
    """The answer that was sent; the data path has checked that it is JSON, whose line breaks mean nothing."""
    start, *parts = sent
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    body = b"".join(part.get("body", b"") for part in parts)
    return Answer(start["status"], body.translate(_ONE_LINE) if b"\n" in body or b"\r" in body else body, headers)


@dataclass(frozen=True, slots=True)
class Retry:
    """When to ask a request again; ``whole_batch``: until then, no other request of the batch either, and this is why:
    ``code`` and ``message``."""

    after_s: float
    whole_batch: bool
    code: str = ""
    message: str = ""


class GroundingPatience:
    """How long a batch still waits for passages: GROUNDING_WAIT_S in all, in growing steps."""

    def __init__(self) -> None:
        self._left_s = GROUNDING_WAIT_S
        self._step_s = GROUNDING_STEP_S
        self._waits_until = 0.0

    def retry_of(self, answer: Answer) -> Retry | None:
        """When to ask again for an answer that lacks passages; None: the wait is over, the answer is the result.

        Requests that were asked at the same time wait together, and it counts once.
        """
        now = time.monotonic()
        if now >= self._waits_until:
            if self._left_s <= 0:
                return None
            step_s = min(self._step_s, self._left_s)
            self._left_s -= step_s
            self._step_s = min(2 * self._step_s, GROUNDING_MAX_STEP_S)
            self._waits_until = now + step_s
        code = str(answer.error.get("code") or "grounding_unavailable")
        message = str(answer.error.get("message") or "no passages could be found for its requests")
        return Retry(self._waits_until - now, True, code, message)


def retry_of(answer: Answer, attempts: int, patience: GroundingPatience) -> Retry | None:
    """Whether an answer is not the last word on a request that was sent ``attempts`` times; None: it is."""
    if answer.lacks_passages:
        return patience.retry_of(answer)
    code = answer.error.get("code")
    if code == RequestOverQuota.default_code:  # no day has as many tokens
        return None
    if answer.status == 429 or (answer.status == 503 and code in WAIT_CODES):
        return Retry(_retry_after(answer), True, str(code), str(answer.error.get("message")))
    final = answer.status < 500 or answer.headers.get("x-should-retry") == "false"
    return None if final or attempts >= MAX_ATTEMPTS else Retry(RETRY_STEP_S * 2.0 ** (attempts - 1), whole_batch=False)


def _retry_after(answer: Answer) -> float:
    """Seconds that the answer's `Retry-After` asks for, at least 1."""
    given = answer.headers.get("retry-after", "")
    return max(1.0, float(given)) if given.isascii() and given.isdigit() else DEFAULT_WAIT_S
