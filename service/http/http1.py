"""A lean HTTP/1.1 client for the data path: one parser in C (httptools), no layers between it and the caller.

It does what the way to an engine needs and nothing else: whole request bodies, responses as they come, connections that
are kept. It follows no redirect, decodes no content, keeps no cookies and never sends a request twice. Per request it
takes a fraction of the CPU time of a general client (`python -m loadtests.gateway.run`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools

from service.client.addresses import is_http
from service.http.addresses import connect_unix

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a response's headers and trailers, and of what frames its body between two pieces of it."""
MAX_BUFFERED_BYTES: Final = 256 * 1024
"""Bytes of a body that wait for their reader; above them the connection is read no further."""

MakeError = Callable[[str], Exception]
"""Makes the error to raise; called with the reason."""


class Http1Client:
    """Requests to one server, over as many connections as are needed at once.

    Args:
        url: Its base URL (http or https); where there is a socket, only the path counts.
        socket: Path of the Unix socket; None: TCP.
        connect_s: Time limit for connecting over TCP, s. A Unix socket connects or fails at once: a timer there would
            only turn away requests on a busy machine.
        keep_alive_s: How long an idle connection is kept, s; must be less than on the other side.
        unreachable: Makes the error where no connection could be made; nothing was sent.
        cut: Makes the error where the request may have been sent, and its response did not come, is no HTTP, or ended
            before it was complete.
        headers: Sent with every request.

    Raises:
        ValueError: The URL is not `http://host:port` or `https://…`, or a header has a line break.
    """

    def __init__(
        self,
        url: str,
        socket: str | None = None,
        *,
        connect_s: float,
        keep_alive_s: float,
        unreachable: MakeError,
        cut: MakeError,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.cut = cut
        self._unreachable = unreachable
        if not is_http(url):
            raise ValueError("the URL must be http://host:port or https://host:port, with a path at most")
        parts = urlsplit(url)
        self._host, self._path = parts.hostname or "", parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" and socket is None else None
        self._socket = socket
        self._connect_s = connect_s
        self._keep_alive_s = keep_alive_s
        self._fixed = _head_lines({"host": parts.netloc, **(headers or {})})
        self._idle: list[_Connection] = []  # the most recently used is the last
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Timeout] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Http1Response:
        """Send a request and wait for the response's headers; the response must be closed.

        Raises:
            Exception: What ``unreachable`` or ``cut`` makes.
            ValueError: The path or a header has a line break, or a character that is not Latin-1.
        """
        target = f"{self._path}{path}"
        if " " in target or not target.isprintable():
            raise ValueError("the path has a space or a control character")
        head = f"{method} {target} HTTP/1.1\r\n{self._fixed}{_head_lines(headers)}content-length: {len(body)}\r\n\r\n"
        message = head.encode("latin-1") + body  # an error here must not cost a connection
        connection = self._kept() or await self._connect()
        return await connection.exchange(message)

    async def close(self) -> None:
        """Abort all connections: requests in flight end as cut, those that are still connecting as unreachable."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._idle.clear()
        for limit in self._connecting:
            if not limit.expired():
                limit.reschedule(0)
        for connection in [*self._open]:
            connection.abort()
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next turn

    def _kept(self) -> _Connection | None:
        """An idle connection that is young enough and still open."""
        oldest = asyncio.get_running_loop().time() - self._keep_alive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_s if self._socket is None else None) as limit:
                self._connecting.add(limit)
                try:
                    connection = await self._dial()
                finally:
                    self._connecting.discard(limit)
        except (OSError, TimeoutError, UnicodeError) as error:  # TLS errors, and hosts that cannot be encoded, too
            raise self._unreachable(str(error) or "connecting took too long, or was given up") from error
        if connection.failure is not None or limit.when() == 0:  # closed meanwhile, by the server or by `close`
            connection.abort()
            raise self._unreachable("the connection was closed before anything was sent")
        # only now: if connecting is cancelled, uvloop never tells the protocol that its connection is lost
        self._open.add(connection)
        return connection

    async def _dial(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            connected = connect_unix(self._socket)
            return (await loop.create_unix_connection(lambda: _Connection(self), sock=connected))[1]
        return (await loop.create_connection(lambda: _Connection(self), self._host, self._port, ssl=self._tls))[1]

    @property
    def awaiting(self) -> int:
        """Requests for which the server has something to send, and nothing of it waits here for its reader."""
        return sum(connection.awaits for connection in self._open)

    # called by connections

    def lost(self, connection: _Connection) -> None:
        """Forget a connection that was closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def keep(self, connection: _Connection) -> None:
        """Take back a connection whose response was read to its end."""
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._keep_alive_s, self._close_old)

    def _close_old(self) -> None:
        """Close what was idle for too long; again later, as long as there are idle connections."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keep_alive_s
        young = [connection for connection in self._idle if connection.idle_since >= oldest]
        for connection in self._idle[: len(self._idle) - len(young)]:
            connection.abort()
        self._idle = young
        self._sweep = loop.call_later(self._keep_alive_s, self._close_old) if young else None


class Http1Response:
    """The response to one request."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: _Connection, status: int, headers: Mapping[str, str]) -> None:
        self._connection: _Connection | None = connection
        self.status = status
        self.headers = headers  # names in lower case; of several with one name, the last

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come. Raises what `Http1Client`'s ``cut`` makes if it breaks off."""
        connection = self._connection
        while connection is not None:
            data = connection.take()
            if data:
                yield data
                connection = self._connection  # None: it was closed meanwhile
            elif connection.complete:
                return
            else:
                await connection.arrival()

    async def read(self) -> bytes:
        """The whole body, or the rest of it. Raises as `chunks`."""
        parts = [chunk async for chunk in self.chunks()]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Keep the connection for the next request if the body has ended; otherwise abort it: the request ends."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on it. The parser calls the methods `on_…`."""

    def __init__(self, client: Http1Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None  # of who waits for the headers, or for more of the body
        self._headers: dict[str, str] = {}
        self._begun = False  # the response's headers are there
        self._parts: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._overhead = 0  # bytes received since the last of the body: an incomplete head, chunk extensions
        self._head_bytes = 0
        self.failure: str | None = None  # why nothing more will come
        self.complete = True  # the response has ended as it should; no other is expected
        self._status = 0
        self._keep_alive = False  # the server will answer another request on it
        self.idle_since = 0.0

    # what the client and the response call

    @property
    def is_open(self) -> bool:
        """Whether it is open, as far as is known."""
        return self.failure is None and self._transport is not None and not self._transport.is_closing()

    @property
    def awaits(self) -> bool:
        """Whether the next word of the response is the server's: it is not complete, and what came of it was read."""
        return not self.complete and not self._parts and self.failure is None

    async def exchange(self, request: bytes) -> Http1Response:
        """Send a request; returns when the response's headers are there. Raises what ``cut`` makes."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers = {}
        self._begun = self.complete = self._keep_alive = False
        self._overhead = self._head_bytes = 0
        try:
            if self._transport is not None and self.failure is None:
                self._transport.write(request)
            while not self._begun:
                await self.arrival()
        except BaseException:
            self.abort()
            raise
        return Http1Response(self, self._status, self._headers)

    def take(self) -> bytes:
        """What of the body has arrived since the last call."""
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts, self._buffered = [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def arrival(self) -> None:
        """Wait for anything new. Raises what ``cut`` makes if nothing more will come."""
        if self.failure is not None:
            raise self._client.cut(self.failure)
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def release(self) -> None:
        """Give the connection back; it is kept if it can carry another request."""
        transport = self._transport
        # whoever still waits must not get a part of the next response
        has_ended = self.complete and not self._parts and self._waiter is None
        if (has_ended and self._keep_alive and self.is_open) and (
            transport is not None and transport.get_write_buffer_size() == 0
        ):
            self.idle_since = asyncio.get_running_loop().time()
            self._client.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close the connection now. A response that was not complete is cut."""
        self._fail("the connection was closed")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and wake the reader if that brought something."""
        if self.failure is not None or self.complete:
            # bytes that no request asked for: whatever they are, the next response must not begin with them
            self._fail("bytes that no request asked for")
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _Invalid) as error:
            self._fail(f"invalid HTTP: {error}")
            return
        if self._overhead > MAX_HEAD_BYTES:
            self._fail(f"more than {MAX_HEAD_BYTES} bytes of headers, trailers or chunk extensions")
            return
        if self._buffered > MAX_BUFFERED_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The end of a body that nothing else delimits; anything else is cut, even if the server still reads."""
        if self._begun and not self.complete and self._until_eof:
            self.complete = True
        self.failure = self.failure or "the server closed the connection"
        self._wake()  # the loop closes the connection only once it has sent what waits, which may be never
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once the connection is closed."""
        self._client.lost(self)
        self._transport = self._parser = None  # the parser's callbacks refer to this object
        self._fail(f"the connection was lost: {exc}" if exc else "the connection was closed")

    # the parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody needs."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _Invalid(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if not self._begun:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The end of a head. Informational responses come before the one that counts."""
        status = self._parser.get_status_code()
        if status == 101:
            raise _Invalid("status 101 to a request that asked for no upgrade")
        if status < 200:
            self._headers = {}
        else:
            self._begun, self._status, self._overhead = True, status, 0

    def on_body(self, data: bytes) -> None:
        """A piece of the body, without its framing."""
        self._parts.append(data)
        self._buffered += len(data)
        self._overhead = 0

    def on_message_begin(self) -> None:
        """A message begins; only an informational one may have been there before."""
        if self.complete:
            raise _Invalid("bytes after the response's end")

    def on_message_complete(self) -> None:
        """The end of the response, unless it was informational."""
        if self._begun:
            self.complete = True
            self._keep_alive = self._parser.should_keep_alive()  # only now: the parser forgets it with the next bytes

    # in here

    @property
    def _until_eof(self) -> bool:
        """Whether only the connection's end delimits the body (RFC 9112, section 6.3)."""
        coding = self._headers.get("transfer-encoding", "")
        if coding:
            return coding.rpartition(",")[2].strip().lower() != "chunked"
        return "content-length" not in self._headers

    def _fail(self, reason: str) -> None:
        """Close the connection. What has arrived can still be read, and what is complete stays so."""
        self.failure = self.failure or reason
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _Invalid(Exception):
    """Raised in the parser's callbacks."""


def _head_lines(headers: Mapping[str, str]) -> str:
    """The headers as lines. Raises ValueError: one has a line break, or a character that HTTP does not allow."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a header has a line break or a null character")
    return lines
