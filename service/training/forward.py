"""Responses proxied from the trainer. Event streams are relayed; a client disconnect cancels the request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.protocol.runs import ADAPTERS_HEADER, KEY_ID_HEADER, PROJECT_HEADER, STORES_HEADER
from service.access.caller import Caller
from service.access.http import request_id
from service.errors import BadGateway, BadRequest, HatrackError, no_such_route
from service.http.disconnect import DISCONNECT, Disconnect
from service.http.multipart import check_content_length, too_large, with_idle_timeout
from service.training.client import TrainerClient, TrainerResponse

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Largest response that is not an event stream."""
MAX_QUERY_BYTES: Final = 4096
MAX_HEADER_CHARS: Final = 255
MAX_SEGMENTS: Final = 8
MAX_SEGMENT_CHARS: Final = 128
_SEGMENT_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@-")
PASSED_ON: Final = ("accept", "last-event-id", "idempotency-key")
PASSED_BACK: Final = (
    *("content-type", "retry-after", "x-should-retry", "x-hatrack-replayed"),
    # restrict what a report's page may do in a browser
    *("content-security-policy", "x-content-type-options", "referrer-policy", "cache-control"),
)
EVENTS: Final = "text/event-stream"
EVENT_HEADERS: Final = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
_LOG = logging.getLogger("hatrack.training")


def target_of(request: Request) -> str:
    """The path and query to request from the trainer.

    Raises:
        NotFound: The path has a segment that no path of the trainer has.
        BadRequest: The query is too long or not printable ASCII.
    """
    path: str = request.scope["path"]
    segments = path.removeprefix("/").split("/")
    valid = all(
        0 < len(segment) <= MAX_SEGMENT_CHARS and segment not in (".", "..") and _SEGMENT_CHARS.issuperset(segment)
        for segment in segments
    )
    if not valid or len(segments) > MAX_SEGMENTS:
        raise no_such_route(request.method, path)
    query: bytes = request.scope.get("query_string", b"")
    if len(query) > MAX_QUERY_BYTES or not all(0x20 < byte < 0x7F for byte in query):
        raise BadRequest(
            f"the query must be at most {MAX_QUERY_BYTES} bytes of printable ASCII; percent-encode the rest"
        )
    return path + (f"?{query.decode('ascii')}" if query else "")


def headers_of(request: Request, caller: Caller) -> dict[str, str]:
    """The headers to send to the trainer: the caller's identity and the client's headers that the trainer uses.

    Raises:
        BadRequest: One of the client's headers is too long or not printable ASCII.
    """
    headers = {PROJECT_HEADER: caller.project, KEY_ID_HEADER: caller.key_id}
    for name, globs in ((ADAPTERS_HEADER, caller.adapters), (STORES_HEADER, caller.stores)):
        if globs is not None:  # hides runs of other adapters and stores
            headers[name] = ",".join(globs)
    current_id = request_id(request)
    if current_id is not None:
        headers["x-request-id"] = current_id
    for name in PASSED_ON:
        value = request.headers.get(name)
        if value is None:
            continue
        if len(value) > MAX_HEADER_CHARS or not value.isascii() or not value.isprintable():
            raise BadRequest(
                f"the header `{name}` must be at most {MAX_HEADER_CHARS} printable ASCII characters", param=name
            )
        headers[name] = value
    return headers


class Streamed:
    """A request body that is streamed to the trainer. Keeps its own error, which the HTTP client would replace.

    Args:
        request: The client's request.
        max_bytes: Size limit.

    Raises:
        TooLarge: The request's Content-Length exceeds the limit.
    """

    def __init__(self, request: Request, max_bytes: int) -> None:
        check_content_length(request.headers, max_bytes)
        self._request = request
        self._max_bytes = max_bytes
        self.error: HatrackError | None = None
        self.read = asyncio.Event()
        """Set once the body has been read or has failed."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        try:
            async for chunk in with_idle_timeout(self._request.stream()):
                total += len(chunk)
                if total > self._max_bytes:
                    raise too_large(self._max_bytes)
                if chunk:
                    yield chunk
        except ClientDisconnect:
            self.error = BadRequest("the client disconnected during the upload", code="client_disconnected")
            raise self.error from None
        except HatrackError as error:
            self.error = error
            raise
        finally:
            self.read.set()


class Forward(Response):
    """Sends the request to the trainer when the response is due, and relays its response.

    Args:
        client: The trainer's client.
        method: The HTTP method.
        target: Path and query.
        headers: All headers of the request to the trainer.
        body: The request's body.
        timeout_s: Time limit until the response starts, s; None uses the client's default.
        done: Awaited before a successful response (a status below 400) is sent to the client.
    """

    def __init__(
        self,
        client: TrainerClient,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Streamed | None = None,
        *,
        timeout_s: float | None = None,
        done: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self._client = client
        self._request = (method, target, headers)
        self._body = body
        self._timeout_s = timeout_s
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay the response. Raises the client's errors if nothing has been sent yet."""
        relay = asyncio.ensure_future(self._relay(scope, send))
        disconnected = asyncio.ensure_future(self._disconnected(receive))
        try:
            await asyncio.wait({relay, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            if relay.done():
                await relay
        finally:
            relay.cancel()
            disconnected.cancel()
            await asyncio.gather(relay, disconnected, return_exceptions=True)

    async def _disconnected(self, receive: Receive) -> None:
        if isinstance(self._body, Streamed):
            await self._body.read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _relay(self, scope: Scope, send: Send) -> None:
        method, target, headers = self._request
        streamed = self._body if isinstance(self._body, Streamed) else None
        try:
            async with self._client.open(method, target, headers, self._body, timeout_s=self._timeout_s) as response:
                if response.headers.get("content-type", "").startswith(EVENTS):
                    _let_a_stop_cut(scope)
                    await _relay_events(response, send)
                    return
                answer = await read_bounded(response)
        except BadGateway:
            if streamed is not None and streamed.error is not None:
                raise streamed.error from None
            raise
        if self._done is not None and response.status < 400:
            await self._done()
        await Response(answer, response.status, kept_headers(response))(_NO_SCOPE, _never, send)


def _let_a_stop_cut(scope: Scope) -> None:
    """Have a server that stops not wait for the end of these events, which may be hours away; the client resumes."""
    disconnect: Disconnect | None = scope.get("state", {}).get(DISCONNECT)
    if disconnect is not None:
        disconnect.is_endless = True


async def _relay_events(response: TrainerResponse, send: Send) -> None:
    """Relay events as they arrive. If the trainer stops, the stream ends and the client resumes with Last-Event-ID."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in kept_headers(response).items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers + EVENT_HEADERS})
    try:
        async for chunk in response.chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except HatrackError as error:
        _LOG.warning("a stream of events ended early", extra={"reason": error.message})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_bounded(response: TrainerResponse) -> bytes:
    """The whole body of the trainer's response. Raises BadGateway, Timeout."""
    content = bytearray()
    async for chunk in response.chunks():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise BadGateway(f"the trainer's response exceeds {MAX_ANSWER_BYTES} bytes", code="trainer_answer")
    return bytes(content)


def kept_headers(response: TrainerResponse) -> dict[str, str]:
    """The response headers that are passed on to the client."""
    return {name: response.headers[name] for name in PASSED_BACK if name in response.headers}


_NO_SCOPE: Final[Scope] = {"type": "http"}


async def _never() -> dict[str, object]:
    raise RuntimeError("a plain response reads nothing")
