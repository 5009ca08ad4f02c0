"""One HTTP/1.1 connection: uvicorn's httptools protocol, with limits on what a client may send, and how slowly."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import Any, Final, Literal, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import BadRequest, HatrackError, HeadersTooLarge, RequestTimeout, UriTooLong
from service.http.disconnect import DISCONNECT, Disconnect
from service.server.answer import AnswerTransport
from service.server.connections import Connections
from service.server.cycle import answer_now, take_body
from service.server.head import check_head

MAX_TARGET_BYTES: Final = 8192
MIN_BODY_BYTES_PER_S: Final = 240
"""The minimum rate of a body over `body_timeout_s` (Kestrel's default); slower requests are ended."""
LINGER_S: Final = 2.0
LINGER_BYTES: Final = 1024 * 1024
"""How long a rejected client may take to read the answer, and how many bytes it may send meanwhile: closing a
connection with unread bytes would lose the answer."""


Phase = Literal[
    "idle",  # waits for a request's first byte
    "head",  # for the rest of its line and headers; a new connection begins here
    "body",  # for the rest of its body
    "answer",  # for the app's answer
    "drain",  # for the rest of a body whose request was answered before all of it had come
    "refused",  # for the client's closing, after an answer that ends the connection
]
"""What a connection waits for; it determines the timeout."""


_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class _StopParsing(Exception):
    """Stops the parser; the connection's fate is already decided."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection within the bounds of ``Connections.limits``.

    A client gets its answer, where none has begun, in OpenAI's error shape, and the connection is closed. One request
    is worked on at a time: what is sent behind it before it is answered (pipelining) is not read, and the connection is
    closed after the answer. ``Upgrade`` is ignored, as HTTP allows.

    Args:
        connections: All connections of this server.
        uvicorns: What uvicorn gives its protocols.
    """

    def __init__(self, *, connections: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._connections = connections
        self._limits = connections.limits
        self._phase: Phase = "head"
        self._since = 0.0
        """Loop time at which the phase, or its present window, began."""
        self._discarding = False
        """Further bytes from the client are discarded."""
        self._unread = 0
        """Number of discarded bytes."""
        self._refusal: HatrackError | None = None
        self._disconnect: Disconnect | None = None
        """Of the request in progress."""
        self._ended = 0
        """Number of complete messages."""
        self._head_bytes = 0
        """Bytes of the incomplete head."""
        self._feeding = 0
        """Bytes in the current call of the parser."""
        self._body_bytes = 0
        self._overhead = 0
        """Bytes since the last byte of the body: chunk extensions and trailers."""
        self._answers: AnswerTransport

    # the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept or reject the connection."""
        super().connection_made(transport)
        self._answers = AnswerTransport(transport, self.loop)
        self._since = self.loop.time()
        refusal = self._connections.admit(self, self.client[0] if self.client else None)
        if refusal is not None:
            self._refuse(refusal, linger=self._connections.keep_rejected(self))

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the closed connection from the count."""
        self._connections.forget(self)
        super().connection_lost(exc)
        self._client_left()

    def resume_writing(self) -> None:
        """The client has taken most of what there was for it."""
        super().resume_writing()
        if self._phase == "idle":
            self.flow.resume_reading()

    def _client_left(self) -> None:
        """Tell the handler of the request in progress that its client has left."""
        disconnect, self._disconnect = self._disconnect, None
        if disconnect is not None:
            disconnect.happen()
            disconnect.end()

    def drop(self) -> None:
        """Abort the connection; unsent data is lost."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count the bytes that it reports only once they are complete."""
        if self._discarding:
            self._unread += len(data)
            if self._unread > (LINGER_BYTES if self._phase == "refused" else self._limits.max_header_bytes):
                self.transport.abort()
            return
        if self._phase == "idle":
            self._enter("head")
        elif self._phase != "head":
            self._overhead += len(data)
        ended, self._feeding = self._ended, len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._discarding = True  # the parser takes what follows for another protocol
            return
        except httptools.HttpParserError:
            if not self._discarding:
                self._refuse(self._refusal or BadRequest("The request is not valid HTTP/1.1.", code="invalid_http"))
            return
        if self._phase == "head":
            if ended == self._ended:
                self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_header_bytes:
                self._refuse(self._head_too_large())
        elif self._overhead > self._limits.max_header_bytes:
            self._refuse(_trailers())

    # the parser's callbacks; what they raise stops it

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if self._phase == "answer":
            # one request at a time: if nothing is read, a disconnect goes unnoticed and its request would run on
            self._discarding = True
            self.cycle.keep_alive = False
            raise _StopParsing
        if self._phase == "idle":  # right after a body that was not read
            self._enter("head")
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._stop(UriTooLong(f"The request's target must have at most {MAX_TARGET_BYTES} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header, or a trailer."""
        headers = self.headers
        if self._phase != "head":
            self._stop(_trailers())
        if len(headers) >= self._limits.max_headers:
            limit = f"{self._limits.max_headers} headers (HATRACK_MAX_HEADERS)"
            self._stop(HeadersTooLarge(f"The request must have at most {limit}."))
        headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The request's head is complete: check it, and start the app."""
        headers, max_bytes = self.headers, self._limits.max_header_bytes
        # the sum is only made where there is enough for it to matter
        if (
            self._head_bytes + self._feeding > max_bytes
            and len(self.url) + sum(len(n) + len(v) + 4 for n, v in headers) > max_bytes
        ):
            self._stop(self._head_too_large())
        try:
            names = check_head(self.parser.get_http_version(), headers)
        except HatrackError as error:
            self._stop(error)
        self._head_bytes = self._body_bytes = self._overhead = 0
        self.expect_100_continue = b"expect" in names and dict(headers)[b"expect"].lower() == b"100-continue"
        upgrade = self.parser.should_upgrade()
        if upgrade and not names.isdisjoint(_FRAMING):
            # the parser takes the body for another protocol
            self._stop(BadRequest("Protocol upgrades are not supported; omit the Upgrade header.", code="invalid_http"))
        self._enter("body")
        self._connections.mark_active(self)
        self.scope["state"][DISCONNECT] = self._disconnect = disconnect = Disconnect(self._buffer_answer)
        super().on_headers_complete()
        disconnect.take_body = partial(take_body, self.cycle)
        disconnect.write_now = partial(self._write_now, self.cycle)
        disconnect.answer_now = partial(answer_now, self.cycle, self._answers)
        self._answers.begin()
        self.cycle.transport = cast(asyncio.Transport, self._answers)
        if upgrade:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server stops: let the request in progress end, if it ever does."""
        if self._disconnect is not None and self._disconnect.is_endless and self.transport is not None:
            self.transport.close()
        super().shutdown()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._ended += 1
        super().on_message_complete()
        if self._phase == "drain":
            self._become_idle()
        else:
            self._enter("answer")
            # the handler may not ask for more, and an end of the connection is only seen where it is read
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """The app has answered."""
        disconnect, self._disconnect = self._disconnect, None
        if disconnect is not None:
            disconnect.end()
        self._answers.flush()  # of an answer without a body
        self._answers.limit()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._phase == "answer":
            self._become_idle()
            if self.flow.write_paused:  # whoever has much of this answer left to read gets no other yet
                self.flow.pause_reading()
        elif self.expect_100_continue and not self._body_bytes:
            self._end()  # it got no 100 Continue: what comes next may be the body or another request
        else:
            self._enter("drain")

    # time

    def check(self, now: float) -> None:
        """Close the connection if the client has exceeded a timeout. ``now`` is on the loop's clock."""
        waited, limits = now - self._since, self._limits
        if self._phase == "refused":
            if waited > LINGER_S:
                self.transport.abort()
        elif self._answers.is_stalled(now, limits.body_timeout_s):
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._phase == "idle":
            if waited > limits.keep_alive_s:
                self.transport.close()
        elif self._phase == "head":
            if waited > limits.header_timeout_s:
                self._head_is_late()
        elif self._phase == "drain":
            if waited > limits.body_timeout_s:
                self.transport.abort()
        elif self._phase == "body":
            self._check_rate(now)

    def _head_is_late(self) -> None:
        if not self._head_bytes:  # it has sent no request
            self.transport.close()
            return
        limit = f"{self._limits.header_timeout_s:g} s (HATRACK_HEADER_TIMEOUT_S)"
        self._refuse(RequestTimeout(f"The request's headers were not received within {limit}."))

    def _check_rate(self, now: float) -> None:
        window = now - self._since
        if self.flow.read_paused:  # the server itself has paused reading
            self._since, self._body_bytes = now, 0
        elif window > self._limits.body_timeout_s:
            if self._body_bytes < MIN_BODY_BYTES_PER_S * window:
                rate = f"{self._body_bytes} bytes of the body in {window:.0f} s"
                self._refuse(
                    RequestTimeout(
                        f"The request is too slow: got {rate}; the minimum is {MIN_BODY_BYTES_PER_S} bytes per second "
                        "(HATRACK_BODY_TIMEOUT_S)."
                    )
                )
            self._since, self._body_bytes = now, 0

    @property
    def unread(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        return self._answers.unread

    def limit_answer(self) -> None:
        """Buffer no more of an answer than of others: all connections together hold too much."""
        self._answers.limit()

    def _write_now(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """As ``cycle.send`` with a piece of a body whose length is not known; False: that must be called."""
        if self.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
            return False
        if data:  # a chunk without any would be the last
            self._answers.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _buffer_answer(self) -> None:
        if self._connections.is_roomy:
            self._answers.deepen()

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since = phase, self.loop.time()

    def _become_idle(self) -> None:
        """The request is over: the connection waits for the next."""
        self._head_bytes = 0
        self._enter("idle")
        self._connections.mark_idle(self)

    # refusals

    def send_400_response(self, msg: str) -> None:
        """Send uvicorn's own refusal in OpenAI's error shape."""
        self._refuse(BadRequest(msg, code="invalid_http"))

    def _head_too_large(self) -> HeadersTooLarge:
        limit = f"{self._limits.max_header_bytes} bytes (HATRACK_MAX_HEADER_KIB)"
        return HeadersTooLarge(f"The request's headers must have at most {limit}.")

    def _stop(self, error: HatrackError) -> NoReturn:
        """Refuse the request from within a callback of the parser. Raises to end the parsing."""
        self._refusal = error
        raise _StopParsing

    def _refuse(self, error: HatrackError, *, linger: bool = True) -> None:
        """Answer with an error where no answer has begun, and close the connection."""
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering:
            cycle.disconnected = True  # the app is told that its client has left
            cycle.message_event.set()
            self.flow.resume_writing()
            self._client_left()
        self._discarding = True
        self._enter("refused")
        if self.transport.is_closing():
            return
        if answering and cycle.response_started:
            self.transport.abort()
            return
        self.transport.write(self._answer(error))
        if linger:
            self._end()
        else:
            self.transport.close()

    def _end(self) -> None:
        """Send what is written, and close once the client has closed, or after LINGER_S."""
        self._discarding = True
        self._enter("refused")
        self.flow.resume_reading()
        self.transport.write_eof()

    def _answer(self, error: HatrackError) -> bytes:
        body = error.body()
        headers = [
            *self.server_state.default_headers,
            (b"x-request-id", secrets.token_hex(12).encode()),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *((name.encode(), value.encode()) for name, value in error.headers.items()),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return STATUS_LINE[error.status] + lines + b"\r\n" + body


def _trailers() -> BadRequest:
    return BadRequest(
        "Trailers after a chunked body and long chunk extensions are not allowed; send headers before the body.",
        code="trailers_not_allowed",
    )
