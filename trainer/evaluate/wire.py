"""One request to the gateway or to an outside endpoint, sent until it is answered or refused for good.

The policy is that of a job's other requests (`trainer.runs.gateway`), but for two answers: a 409 says that the version
cannot be served, which asking again does not better, and an answer that says so itself is not asked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from pydantic import SecretStr

from trainer.errors import AnswerRefused, AnswerUnreadable, ArmUnservable, GatewayUnreachable
from trainer.runs.gateway import PATIENCE_S, RETRY_S, RETRYABLE

TIMEOUT: Final = httpx.Timeout(30, connect=5, read=600)
"""A background request waits at the gate behind callers' before it is answered."""
TOTAL_S: Final = 660.0
"""Longest time for one attempt, s: a body that trickles would go round the timeout of a read."""
RETRY_AFTER_MOST_S: Final = 60.0
AGAIN: Final = RETRYABLE - {409}
GONE: Final = frozenset({404, 409, 410})
"""Not this example is refused but the arm: its version was deleted, or this engine cannot serve it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an OpenAI-compatible API is, and how it wants to be asked. Of the operator's settings.

    Attributes:
        url: Without `/v1`.
        key: To show it.
        max_tokens_field: What it calls the longest answer: newer models of OpenAI's know `max_completion_tokens` alone.
        temperature: Whether it is sent: models that reason may refuse it.
        fields: What every request has besides; wins.
    """

    url: str
    key: SecretStr | None = None
    max_tokens_field: str = "max_tokens"
    temperature: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)

    def sampling(self, max_tokens: int) -> dict[str, Any]:
        """The part of a request that says how to answer: greedily, and in so many tokens at most."""
        greedy = {"temperature": 0} if self.temperature else {}
        return {**greedy, self.max_tokens_field: max_tokens, **self.fields}


class Wire:
    """Sends requests to one endpoint; an async context manager.

    Args:
        endpoint: Where to.
        connections: Most at once.
        wait: Awaited instead of sleeping, with seconds; may raise to end the waiting.
        patience_s: How long an endpoint may be away before the request is given up.
        transport: Of httpx; another one for tests.
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
        """The JSON answer to a request, and its headers.

        Raises:
            ArmUnservable: The model is not there, or cannot be served.
            AnswerRefused: It is refused for another reason.
            AnswerUnreadable: The answer is no JSON object.
            GatewayUnreachable: The endpoint was away for as long as is waited.
        """
        deadline = time.monotonic() + self._patience_s
        tries = 0
        while True:
            pause = RETRY_S[min(tries, len(RETRY_S) - 1)]
            try:
                async with asyncio.timeout(TOTAL_S):
                    response = await self._http.post(path, json=body)
            except (httpx.TransportError, TimeoutError) as error:
                if time.monotonic() + pause > deadline:
                    raise GatewayUnreachable(f"{self._http.base_url} went away: {error!r}") from error
            else:
                if response.status_code == 200:
                    return _object(response), response.headers
                pause = max(pause, _retry_after(response))
                again = response.status_code in AGAIN and response.headers.get("x-should-retry") != "false"
                if not again or time.monotonic() + pause > deadline:
                    raise _refused(response)
            await self._wait(pause)
            tries += 1


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError as error:
        raise AnswerUnreadable("the answer is no JSON") from error
    if not isinstance(found, dict):
        raise AnswerUnreadable("the answer is no JSON object")
    return found


def _retry_after(response: httpx.Response) -> float:
    given = response.headers.get("retry-after", "")
    return min(float(given), RETRY_AFTER_MOST_S) if given.isascii() and given.isdigit() else 0.0


def _refused(response: httpx.Response) -> AnswerRefused:
    status = response.status_code
    kind = ArmUnservable if status in GONE else AnswerRefused
    try:
        error = response.json()["error"]
        return kind(status, str(error.get("code")), str(error.get("message")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return kind(status, "unexpected_answer", f"status {status}")
