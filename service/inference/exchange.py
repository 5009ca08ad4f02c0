"""One HTTP exchange over ASGI: reads the body, sends the answer, and detects a client that disconnects."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Any

from service.errors import BadRequest, HatrackError, Timeout, TooLarge, WrongMediaType
from service.http.disconnect import DISCONNECT, Disconnect, only_send
from service.http.reading import BODIES

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ErrorFormatter = Callable[[HatrackError, str], bytes]
"""Formats an error for the client, given the request's id."""

BODY_TIMEOUT_S = 60.0
ERROR_EVENT_TIMEOUT_S = 5.0
"""Time limit for sending the error event at a stream's end, s: the client may not be reading."""
CUT_TIMEOUT_S = 0.5
"""The same where the process stops, which must not take longer for a client that does not read, s."""
CLIENT_LEFT = 499
"""Status in logs and metrics of a request whose client disconnected; it is never sent."""
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class ClientLeft(Exception):
    """The client closed its connection."""


@lru_cache(4096)
def _version_headers(name: str | None, digest: str | None) -> tuple[tuple[bytes, bytes], ...]:
    headers = ((b"x-hatrack-adapter", name), (b"x-hatrack-digest", digest))
    return tuple((header, value.encode("latin-1")) for header, value in headers if value is not None)


def _openai_error(error: HatrackError, _request_id: str) -> bytes:
    return error.body()


class Exchange:
    """A request and its answer."""

    __slots__ = (
        *("_disconnect", "_error_body", "_error_event", "_extra_headers", "_receive", "_send"),
        *("headers", "path", "peer", "request_id", "started", "status"),
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._disconnect: Disconnect | None = scope.get("state", {}).get(DISCONNECT)
        self.path: str = scope["path"]
        self.peer: str = (scope.get("client") or ("",))[0]
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        client_id = self.headers.get("x-request-id", "")
        self.request_id = client_id if _SANE_ID.fullmatch(client_id) else secrets.token_hex(16)
        self._extra_headers: list[tuple[bytes, bytes]] = [(b"x-request-id", self.request_id.encode())]
        self._error_body: ErrorFormatter = _openai_error
        self._error_event: ErrorFormatter | None = None
        self.started = False
        self.status = 0

    def set_dialect(self, error_body: ErrorFormatter, id_header: bytes | None) -> None:
        """Set how the route's dialect formats errors, and its own header for the request's id."""
        self._error_body = error_body
        if id_header is not None:
            self.add_header(id_header, self.request_id)

    def add_header(self, name: bytes, value: str) -> None:
        """Add a response header, also to error responses."""
        self._extra_headers.append((name, value.encode("latin-1")))

    def add_headers(self, headers: list[tuple[bytes, str]]) -> None:
        """Add response headers, also to error responses."""
        self._extra_headers.extend((name, value.encode("latin-1")) for name, value in headers)

    def name_adapter(self, name: str | None, digest: str | None) -> None:
        """Say in the response which adapter version answers, and by which weights; None: neither is the case."""
        self._extra_headers.extend(_version_headers(name, digest))

    async def read_json_body(self, max_bytes: int) -> bytes:
        """Read the body, at most ``max_bytes`` bytes regardless of its content-length.

        Raises:
            WrongMediaType: The content type is not JSON, or the body is encoded.
            TooLarge: It has more bytes; the rest is not read.
            BadRequest: It did not arrive in time.
            RateLimited, Unavailable: Too many bytes of bodies are being read, from this client or in all.
            ClientLeft: The client closed the connection.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise WrongMediaType(f"the content type must be `application/json`; got {kind[:80]!r}")
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            raise WrongMediaType(f"the body must not have a content-encoding; got {coding[:80]!r}")
        content_length = self.headers.get("content-length", "")
        if content_length.isascii() and content_length.isdigit() and int(content_length[:20]) > max_bytes:
            raise _too_large(max_bytes)
        arrived = None if self._disconnect is None else self._disconnect.take_body()
        if arrived is not None:
            if len(arrived) > max_bytes:
                raise _too_large(max_bytes)
            return arrived
        parts: list[bytes] = []
        try:
            with BODIES.reading(self.peer) as body:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    while True:
                        message = await self._receive()
                        if message["type"] == "http.disconnect":
                            raise ClientLeft
                        part = message.get("body", b"")
                        body.add(len(part))
                        if body.bytes > max_bytes:
                            raise _too_large(max_bytes)
                        parts.append(part)
                        if not message.get("more_body", False):
                            return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise BadRequest(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", code="body_timeout") from None

    def cancel_on_disconnect(self, limit_s: float) -> RequestScope:
        """A context that is cancelled when the client disconnects or after ``limit_s`` seconds."""
        return RequestScope(self._receive, limit_s, self._disconnect)

    async def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a whole JSON answer."""
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if headers:
            own.extend((name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items())
        all_headers = own + self._extra_headers
        self.started, self.status = True, status
        if self._disconnect is not None and self._disconnect.answer_now(self._send, status, all_headers, body):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body})

    async def start_events(self, error_event: ErrorFormatter) -> None:
        """Begin a stream of server-sent events; ``error_event`` formats an error that occurs in it."""
        self._error_event = error_event
        if self._disconnect is not None:
            self._disconnect.buffer_answer()
        await self._start(
            200,
            [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ],
        )

    def never_ends(self) -> None:
        """The answer goes on until the client leaves: have a server that stops cut it."""
        if self._disconnect is not None:
            self._disconnect.is_endless = True

    async def start_foreign(
        self, status: int, headers: list[tuple[bytes, bytes]], error_event: ErrorFormatter | None = None
    ) -> None:
        """Begin an answer that another process made, with its headers and none of ours.

        ``error_event``: as of `start_events`, for a stream of events; None: it is none.
        """
        self._error_event = error_event
        self.started, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self._extra_headers})

    async def write(self, data: bytes) -> None:
        """Send a part of the body; waits while the client reads slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    @property
    def write_now(self) -> Callable[[bytes], bool]:
        """As `write`, for an answer that has begun; returns False, and sends nothing, where it would have to wait."""
        return only_send if self._disconnect is None else self._disconnect.write_now

    async def finish(self) -> None:
        """End the body."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: HatrackError) -> None:
        """Send an error to the client: as the response, or as the last event of a stream that has begun."""
        if not self.started:
            await self.answer(error.status, self._error_body(error, self.request_id), error.headers)
        elif self._error_event is not None:
            try:
                async with asyncio.timeout(ERROR_EVENT_TIMEOUT_S):
                    await self.write(self._error_event(error, self.request_id))
                    await self.finish()
            except TimeoutError:
                return

    async def cut(self, error: HatrackError) -> None:
        """As `fail`, in a task that was cancelled because this process stops: it gives up soon, and raises nothing."""
        if self._disconnect is not None and self._disconnect.happened:
            return
        with suppress(Exception):
            async with asyncio.timeout(CUT_TIMEOUT_S):
                await self.fail(error)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body has more than {max_bytes} bytes (HATRACK_MAX_BODY_MIB)", headers={"connection": "close"})


class RequestScope:
    """Cancels its body when the client disconnects (raises ClientLeft) or the time is up (raises Timeout).

    Args:
        receive: The request's ASGI callable; its body has been read.
        limit_s: Time limit, s.
        disconnect: The server's own notice; None: a task waits for ASGI's, at a tenth of a request's CPU time.
    """

    __slots__ = ("_client_left", "_disconnect", "_limit_s", "_receive", "_timeout", "_watcher")

    def __init__(self, receive: Receive, limit_s: float, disconnect: Disconnect | None) -> None:
        self._receive = receive
        self._limit_s = limit_s
        self._disconnect = disconnect
        self._client_left = False
        self._timeout = asyncio.timeout(limit_s)
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        if self._disconnect is None:
            self._watcher = asyncio.create_task(self._watch())
        else:
            self._disconnect.subscribe(self._leave)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._leave()

    def _leave(self) -> None:
        if self._timeout.expired():
            return
        self._client_left = True
        # reuse the deadline: moving it to now cancels the body, which closes the connection to the engine
        self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._disconnect is not None:
            self._disconnect.subscribe(None)
        if self._watcher is not None:
            self._watcher.cancel()
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._client_left:
                raise ClientLeft from None
            raise Timeout(f"the request took longer than {self._limit_s:g} s (HATRACK_REQUEST_TIMEOUT_S)") from None
