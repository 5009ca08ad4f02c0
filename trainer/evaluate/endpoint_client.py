"""The HTTP client for one endpoint: the gateway or an outside one. Retries a request until it is answered or refused.

The retry policy is that of a job's other requests (`trainer.runs.gateway`) with two exceptions: a 409 is final, because
the version cannot be served, and so is a response with `x-should-retry: false`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from pydantic import SecretStr

from adapters.costs import TokenPrices
from trainer.errors import AnswerRefused, AnswerUnreadable, ArmUnservable, GatewayUnreachable
from trainer.runs.gateway import PATIENCE_S, RETRY_S, RETRYABLE_EXCEPT_CONFLICT
from trainer.runs.protocol import OutsideCharge

TIMEOUT: Final = httpx.Timeout(30, connect=5, read=600)
"""Background requests wait in the queue behind callers'."""
ATTEMPT_TIMEOUT_S: Final = 660.0
"""Limit for one attempt, in seconds: a body that trickles in never hits the read timeout."""
MAX_RETRY_AFTER_S: Final = 60.0
MAX_TOKENS: Final = 10**9
"""Of one answer: an endpoint that claims more is not believed."""
ARM_UNSERVABLE: Final = frozenset({404, 409, 410})
"""Statuses that refuse the arm, not the example: its version was deleted, or this engine cannot serve it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible API: where it is, and what its requests look like. From the operator's settings.

    Attributes:
        url: Without `/v1`.
        key: Sent as bearer token.
        max_tokens_field: Name of the field for the longest answer: newer OpenAI models only accept
            `max_completion_tokens`.
        temperature: Whether to send `temperature`: reasoning models may refuse it.
        fields: Added to every request; they override the others.
        prices: What its tokens cost; None for the gateway, and where the settings do not say.
    """

    url: str
    key: SecretStr | None = None
    max_tokens_field: str = "max_tokens"
    temperature: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)
    prices: TokenPrices | None = None

    def sampling(self, max_tokens: int) -> dict[str, Any]:
        """The sampling fields of a request: greedy decoding with at most `max_tokens` tokens."""
        greedy = {"temperature": 0} if self.temperature else {}
        return {**greedy, self.max_tokens_field: max_tokens, **self.fields}


def charge_of(name: str, prices: TokenPrices | None, usage: Any) -> OutsideCharge:
    """What an answer of the endpoint of that name cost. ``usage``: that of the answer, as it came."""
    counts = usage if isinstance(usage, dict) else {}
    tokens = [_count(counts.get(field)) for field in ("prompt_tokens", "completion_tokens")]
    money = prices.of(*tokens) if prices is not None and any(tokens) else None
    return OutsideCharge(endpoint=name, prompt_tokens=tokens[0], completion_tokens=tokens[1], money=money)


def _count(value: Any) -> int:
    """A number of tokens; 0 for what is none."""
    return value if type(value) is int and 0 < value <= MAX_TOKENS else 0


class EndpointClient:
    """Sends requests to one endpoint; an async context manager.

    Args:
        endpoint: Where to send them.
        connections: Maximum concurrent connections.
        wait: Awaited with seconds instead of sleeping; may raise to stop waiting.
        patience_s: How long the endpoint may be unreachable before a request fails, in seconds.
        transport: Replaces httpx's transport in tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connections: int = 8,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        patience_s: float = PATIENCE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {} if endpoint.key is None else {"authorization": f"Bearer {endpoint.key.get_secret_value()}"}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(
            base_url=endpoint.url, headers=headers, timeout=TIMEOUT, limits=limits, transport=transport
        )
        self._wait = wait
        self._patience_s = patience_s

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], httpx.Headers]:
        """Send a request; return the JSON body of the response and its headers.

        Raises:
            ArmUnservable: The model does not exist or cannot be served.
            AnswerRefused: The request is refused for another reason.
            AnswerUnreadable: The response is not a JSON object.
            GatewayUnreachable: The endpoint was unreachable for `patience_s`.
        """
        deadline = time.monotonic() + self._patience_s
        attempt = 0
        while True:
            delay = RETRY_S[min(attempt, len(RETRY_S) - 1)]
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    response = await self._http.post(path, json=body)
            except (httpx.TransportError, TimeoutError) as error:
                if time.monotonic() + delay > deadline:
                    raise GatewayUnreachable(f"{self._http.base_url} is unreachable: {error!r}") from error
            else:
                if response.status_code == 200:
                    return _object(response), response.headers
                delay = max(delay, _retry_after(response))
                retryable = (
                    response.status_code in RETRYABLE_EXCEPT_CONFLICT
                    and response.headers.get("x-should-retry") != "false"
                )
                if not retryable or time.monotonic() + delay > deadline:
                    raise _refused(response)
            await self._wait(delay)
            attempt += 1


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError as error:
        raise AnswerUnreadable("the response is not valid JSON") from error
    if not isinstance(content, dict):
        raise AnswerUnreadable("the response is not a JSON object")
    return content


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), MAX_RETRY_AFTER_S) if value.isascii() and value.isdigit() else 0.0


def _refused(response: httpx.Response) -> AnswerRefused:
    status = response.status_code
    kind = ArmUnservable if status in ARM_UNSERVABLE else AnswerRefused
    try:
        error = response.json()["error"]
        refused = kind(status, str(error.get("code")), str(error.get("message")))
    except (ValueError, KeyError, TypeError, AttributeError):
        refused = kind(status, "unexpected_answer", f"status {status}")
    refused.retry_after_s = _retry_after(response) or None
    return refused
