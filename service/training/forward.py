"""An answer that is the trainer's: asked when it is sent, streamed where it is events, ended when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.protocol.runs import ADAPTERS_HEADER, KEY_ID_HEADER, PROJECT_HEADER
from service.access.caller import Caller
from service.access.http import request_id
from service.errors import BadGateway, BadRequest, HatrackError, NotFound
from service.http.multipart import check_content_length, too_large, with_idle_timeout
from service.training.client import TrainerClient, TrainerResponse

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Largest answer that is no stream."""
MAX_QUERY_BYTES: Final = 4096
MAX_HEADER_CHARS: Final = 255
MAX_SEGMENTS: Final = 8
MAX_SEGMENT_CHARS: Final = 128
_SEGMENT_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@-")
PASSED_ON: Final = ("accept", "last-event-id", "idempotency-key")
PASSED_BACK: Final = (
    *("content-type", "retry-after", "x-should-retry", "x-hatrack-replayed"),
    # of a report's page: what it must not do in a browser
    *("content-security-policy", "x-content-type-options", "referrer-policy", "cache-control"),
)
EVENTS: Final = "text/event-stream"
EVENT_HEADERS: Final = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
_LOG = logging.getLogger("hatrack.training")


def target_of(request: Request) -> str:
    """Path and query as the trainer is asked for them.

    Raises:
        NotFound: The path holds what no path of the trainer's does.
        BadRequest: The query is too long, or no plain ASCII.
    """
    path: str = request.scope["path"]
    segments = path.removeprefix("/").split("/")
    sane = all(
        0 < len(segment) <= MAX_SEGMENT_CHARS and segment not in (".", "..") and _SEGMENT_CHARS.issuperset(segment)
        for segment in segments
    )
    if not sane or len(segments) > MAX_SEGMENTS:
        raise NotFound("there is nothing here")
    query: bytes = request.scope.get("query_string", b"")
    if len(query) > MAX_QUERY_BYTES or not all(0x20 < byte < 0x7F for byte in query):
        raise BadRequest(f"the query has more than {MAX_QUERY_BYTES} bytes, or some that are not ASCII")
    return path + (f"?{query.decode('ascii')}" if query else "")


def headers_of(request: Request, caller: Caller) -> dict[str, str]:
    """The headers that the trainer sees: who asks, and the few of the client's own that mean something to it.

    Raises:
        BadRequest: One of those is too long, or holds control characters.
    """
    found = {PROJECT_HEADER: caller.project, KEY_ID_HEADER: caller.key_id}
    if caller.adapters is not None:  # of other adapters' jobs the trainer knows nothing then
        found[ADAPTERS_HEADER] = ",".join(caller.adapters)
    known = request_id(request)
    if known is not None:
        found["x-request-id"] = known
    for name in PASSED_ON:
        value = request.headers.get(name)
        if value is None:
            continue
        if len(value) > MAX_HEADER_CHARS or not value.isascii() or not value.isprintable():
            raise BadRequest(f"the header `{name}` has up to {MAX_HEADER_CHARS} printable ASCII characters", param=name)
        found[name] = value
    return found


class Streamed:
    """A request's body on its way to the trainer: counted, and its own errors kept, which the way would hide.

    Args:
        request: Whose body it is.
        most: Most bytes.

    Raises:
        TooLarge: The request says that it has more.
    """

    def __init__(self, request: Request, most: int) -> None:
        check_content_length(request.headers, most)
        self._request = request
        self._most = most
        self.error: HatrackError | None = None
        self.read = asyncio.Event()
        """Set once nothing of the body is to come any more."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        try:
            async for piece in with_idle_timeout(self._request.stream()):
                total += len(piece)
                if total > self._most:
                    raise too_large(self._most)
                if piece:
                    yield piece
        except ClientDisconnect:
            self.error = BadRequest("the client left in the middle of its upload", code="client_disconnected")
            raise self.error from None
        except HatrackError as error:
            self.error = error
            raise
        finally:
            self.read.set()


class Forward(Response):
    """Asks the trainer when it is its turn to answer.

    Args:
        client: The trainer.
        method: The HTTP method.
        target: Path and query.
        headers: All headers of the request to the trainer.
        body: Sent with it.
        timeout_s: Longest time until the trainer begins to answer, s; None: the usual one.
        done: Awaited before the client hears that a change was made (a status below 400).
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
        self._ask = (method, target, headers)
        self._sent = body
        self._timeout_s = timeout_s
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask and answer. Raises what asking raises, as long as nothing was sent."""
        work = asyncio.ensure_future(self._relay(send))
        left = asyncio.ensure_future(self._left(receive))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        finally:
            work.cancel()
            left.cancel()
            await asyncio.gather(work, left, return_exceptions=True)

    async def _left(self, receive: Receive) -> None:
        if isinstance(self._sent, Streamed):
            await self._sent.read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _relay(self, send: Send) -> None:
        method, target, headers = self._ask
        streamed = self._sent if isinstance(self._sent, Streamed) else None
        try:
            async with self._client.open(method, target, headers, self._sent, timeout_s=self._timeout_s) as response:
                if response.headers.get("content-type", "").startswith(EVENTS):
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


async def _relay_events(response: TrainerResponse, send: Send) -> None:
    """Events as they come. Where the trainer goes away the stream ends: its reader comes back with Last-Event-ID."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in kept_headers(response).items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers + EVENT_HEADERS})
    try:
        async for piece in response.chunks():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except HatrackError as error:
        _LOG.warning("a stream of events ended early", extra={"reason": error.message})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_bounded(response: TrainerResponse) -> bytes:
    """The trainer's whole answer. Raises BadGateway, Timeout."""
    found = bytearray()
    async for piece in response.chunks():
        found += piece
        if len(found) > MAX_ANSWER_BYTES:
            raise BadGateway(f"the trainer's answer has more than {MAX_ANSWER_BYTES} bytes", code="trainer_answer")
    return bytes(found)


def kept_headers(response: TrainerResponse) -> dict[str, str]:
    """The trainer's headers that the client sees."""
    return {name: response.headers[name] for name in PASSED_BACK if name in response.headers}


_NO_SCOPE: Final[Scope] = {"type": "http"}


async def _never() -> dict[str, object]:
    raise RuntimeError("a plain response reads nothing")
