"""The way to the engine: HTTP over its Unix socket (or TCP). Whatever was sent once is never sent again by itself."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.engine.contract import ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE, ENGINE_NOT_FINITE, PLUGIN_ROUTE
from service.errors import (
    AdapterNotFinite,
    BadGateway,
    EngineCut,
    EngineRefused,
    EngineUnavailable,
    EngineUnreachable,
    Timeout,
)
from service.http.http1 import Http1Client
from service.http.http1_response import Http1Response, Take

CONNECT_TIMEOUT_S: Final = 5.0
QUICK_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 3.0
"""Shorter than the 5 s after which vLLM's server closes an idle connection: a request must not meet that moment."""
MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""What is no stream: a context of 128,000 tokens with 20 alternatives each has some 200 MiB."""
ENGINE_KEY_REFUSED = "engine_key_refused"


class EngineResponse:
    """The engine's answer to one request; whoever sent it closes it."""

    __slots__ = ("_client", "_response")

    def __init__(self, response: Http1Response, client: EngineClient) -> None:
        self._response = response
        self._client: EngineClient | None = client

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""
        return self._response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive. Raises EngineCut if the connection is lost."""
        return self._response.chunks()

    async def pass_to(self, take: Take) -> bool:
        """As `Http1Response.pass_to`. Raises EngineCut if the connection is lost."""
        return await self._response.pass_to(take)

    async def read(self) -> bytes:
        """The whole body. Raises EngineCut if the connection is lost, BadGateway if it has no end in sight."""
        whole = self._response.take_rest()
        if whole is not None:
            _check_size(len(whole))
            return whole
        parts: list[bytes] = []
        size = 0
        async for chunk in self._response.chunks():
            size += len(chunk)
            _check_size(size)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Keep the connection for the next request if the body was read to its end; else cut it: the request ends."""
        client, self._client = self._client, None
        if client is not None:
            client.in_flight -= 1
            self._response.close()


def _check_size(size: int) -> None:
    if size > MAX_ANSWER_BYTES:
        raise BadGateway(f"the engine's answer has more than {MAX_ANSWER_BYTES >> 20} MiB")


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A prompt as the engine would read it: its tokens, the tokens that its context holds, and the text."""

    tokens: int
    context: int
    text: str


class EngineClient:
    """A client for one engine, reached by its socket or its URL.

    Args:
        socket: Path of the Unix socket.
        url: Base URL, where there is no socket.
        available: Asked before each request: why there is no engine now, or None. Nothing waits for a dead engine.
        key: The engine's API key, if it asks for one.
    """

    def __init__(
        self,
        *,
        socket: str | None = None,
        url: str = "http://engine",
        available: Callable[[], str | None] = lambda: None,
        key: str | None = None,
    ) -> None:
        self._available = available
        self._http = _http_client(url, socket, key)
        self.in_flight = 0

    @property
    def awaiting(self) -> int:
        """Of those in flight, the requests that wait for the engine: not those whose own client does not read."""
        return self._http.awaiting

    async def close(self) -> None:
        """Close the connections; requests in flight end."""
        await self._http.close()

    async def _move(self, url: str, socket: str | None) -> None:
        """Send what comes later there; requests in flight end."""
        former, self._http = self._http, _http_client(url, socket)
        await former.close()

    async def send(self, path: str, body: bytes, headers: dict[str, str]) -> EngineResponse:
        """POST ``body``; closing the response before the body's end closes the connection, which aborts the request.

        Raises:
            EngineUnavailable: There is no engine now; at once.
            EngineCut: It went away before it answered.
        """
        reason = self._available()
        if reason is not None:
            raise EngineUnavailable(f"the engine is not ready: {reason}")
        self.in_flight += 1
        try:
            response = await self._http.request("POST", path, body, headers)
        except BaseException:
            self.in_flight -= 1
            raise
        return EngineResponse(response, self)

    async def post_json(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Any:
        """POST JSON and read a JSON answer.

        Raises:
            EngineUnavailable, AdapterNotFinite, BadGateway, Timeout.
        """
        headers = {"content-type": "application/json"}
        try:
            async with asyncio.timeout(timeout_s):
                with closing(await self.send(path, orjson.dumps(body), headers)) as response:
                    data = await response.read()
            if response.status == 200:
                return orjson.loads(data)
            raise _refusal(response.status, data)
        except TimeoutError:
            raise Timeout(f"the engine did not answer within {timeout_s:g} s") from None
        except orjson.JSONDecodeError as error:
            raise BadGateway("the engine's answer is not JSON") from error

    async def get_text(self, path: str, *, timeout_s: float = QUICK_TIMEOUT_S) -> str:
        """GET a text, even while the engine does not count as ready.

        Raises:
            EngineUnreachable: Nothing listens there.
            EngineUnavailable: It does not answer in time, or not with HTTP.
            BadGateway: It answered something else than 200.
        """

        try:
            async with asyncio.timeout(timeout_s):
                with closing(await self._http.request("GET", path, b"", self._get_headers(path))) as response:
                    text = (await response.read()).decode("utf-8", "replace")
        except (EngineCut, TimeoutError) as error:
            raise EngineUnavailable(f"the engine does not answer {path}") from error
        if response.status == 401:
            raise BadGateway("the engine rejects the API key (HATRACK_ENGINE_KEY)", code=ENGINE_KEY_REFUSED)
        if response.status != 200:
            raise BadGateway(f"the engine returned status {response.status} for {path}")
        return text

    def _get_headers(self, path: str) -> dict[str, str]:
        """What a GET request must have besides."""
        return {}

    async def report(self, *, loaded: bool = False, timeout_s: float = QUICK_TIMEOUT_S) -> dict[str, Any]:
        """The report of the engine's plugin. Raises as ``get_text``; also BadGateway if there is no plugin."""
        try:
            path = PLUGIN_ROUTE + ("?loaded=1" if loaded else "")
            answer = orjson.loads(await self.get_text(path, timeout_s=timeout_s))
        except orjson.JSONDecodeError as error:
            raise BadGateway(f"the engine's answer to {PLUGIN_ROUTE} is not JSON") from error
        if not isinstance(answer, dict):
            raise BadGateway(f"the engine's answer to {PLUGIN_ROUTE} is not a JSON object")
        return answer

    async def render_chat(
        self, model: str, messages: Sequence[Mapping[str, str]], *, timeout_s: float = 30.0
    ) -> RenderedChat:
        """The prompt that the chat template makes of these messages, up to where the answer begins. No model runs.

        Raises:
            EngineRefused: The template refuses them.
            EngineUnavailable, BadGateway, Timeout.
        """
        body = {"model": model, "messages": list(messages), "add_generation_prompt": True}
        answer = await self.post_json("/tokenize", body, timeout_s=timeout_s)
        try:
            ids, context = answer["tokens"], int(answer["max_model_len"])
            text = await self.post_json("/detokenize", {"model": model, "tokens": ids}, timeout_s=timeout_s)
            return RenderedChat(len(ids), context, str(text["prompt"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadGateway("the engine's response has no tokens") from error

    async def logprobs(self, model: str, texts: Sequence[str], *, timeout_s: float = 120.0) -> list[list[float]]:
        """For each text the log-probabilities (nats) of its tokens but the first, under a digest or the base's name.

        Each call has a cache salt of its own: what another request left in the prefix cache does not answer it. A text
        that is longer than the engine's context is cut to it.

        Raises:
            AdapterNotFinite: The engine says that the adapter's numbers are not numbers.
            EngineUnavailable, BadGateway, Timeout.
        """
        body = {
            "model": model,
            "prompt": list(texts),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
            "truncate_prompt_tokens": -1,
            "cache_salt": secrets.token_hex(16),
        }
        answer = await self.post_json("/v1/completions", body, timeout_s=timeout_s)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            return [[_only(position) for position in choice["prompt_logprobs"][1:]] for choice in choices]
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise BadGateway("the engine's response has no log-probabilities") from error


def _http_client(url: str, socket: str | None, key: str | None = None) -> Http1Client:
    """Connections to an engine; arguments as of `EngineClient`."""
    return Http1Client(
        url,
        socket,
        connect_s=CONNECT_TIMEOUT_S,
        keep_alive_s=KEEP_ALIVE_S,
        unreachable=lambda _: EngineUnreachable("the engine cannot be reached"),
        cut=lambda _: EngineCut("the engine closed the connection before its response was complete"),
        headers={"authorization": f"Bearer {key}"} if key else {},
    )


def _only(position: dict[str, dict[str, float | None]]) -> float:
    """The log-probability of the prompt's own token: the one entry that `prompt_logprobs: 0` leaves."""
    (entry,) = position.values()
    value = entry["logprob"]
    return math.nan if value is None else float(value)


def _refusal(status: int, data: bytes) -> AdapterNotFinite | BadGateway | EngineUnavailable:
    kind: object = None
    message = ""
    if len(data) <= MAX_ERROR_BYTES:
        try:
            error = orjson.loads(data)["error"]
            kind, message = error.get("type"), str(error.get("message", ""))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            message = ""
    if kind in (ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE):
        return AdapterNotFinite("the adapter's activations are not finite", code=str(kind))
    if kind == ENGINE_NOT_FINITE:
        return BadGateway("the base model's activations are not finite", code=ENGINE_NOT_FINITE)
    if status == 401:
        return BadGateway("the engine rejects the API key (HATRACK_ENGINE_KEY)", code=ENGINE_KEY_REFUSED)
    if status == 503:
        return EngineUnavailable("the engine is not accepting requests")
    if status in (400, 422):
        return EngineRefused(f"the engine returned status {status}: {message[:300]}", reason=message[:300])
    return BadGateway(f"the engine returned status {status}: {message[:300]}")
