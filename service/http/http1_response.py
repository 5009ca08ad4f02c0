"""The responses of `service.http.http1`, and the connections that they come on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Protocol, cast

import httptools

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a response's headers and trailers, and of what frames its body between two pieces of it."""
MAX_BUFFERED_BYTES: Final = 256 * 1024
"""Bytes of a body that wait for their reader; above them the connection is read no further."""

MakeError = Callable[[str], Exception]
"""Makes the error to raise; called with the reason."""
Take = Callable[[bytes], bool]
"""Takes a piece of a body; returns whether it takes the next one as well."""


class Pool(Protocol):
    """Whose connections these are: `service.http.http1.Http1Client`."""

    cut: MakeError

    def lost(self, connection: Http1Connection) -> None:
        """Forget a connection that was closed."""

    def keep(self, connection: Http1Connection) -> None:
        """Take back a connection whose response was read to its end."""


class Http1Response:
    """The response to one request."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: Http1Connection, status: int, headers: Mapping[str, str]) -> None:
        self._connection: Http1Connection | None = connection
        self.status = status
        self.headers = headers  # names in lower case; of several with one name, the last

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come. Raises what the client's ``cut`` makes if it breaks off."""
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

    async def pass_to(self, take: Take) -> bool:
        """Hand the body to ``take`` piece by piece, as it arrives: no task has to be woken for a piece.

        Returns True at the body's end; False once ``take`` returned False: call it again for the rest. Raises as
        `chunks`, and what ``take`` raises. ``take`` must not close the response.
        """
        connection = self._connection
        while connection is not None:
            data = connection.take()
            if data:
                if not take(data):
                    return False
                connection = self._connection  # None: it was closed meanwhile
            elif connection.complete:
                return True
            elif not await connection.passed(take):
                return False
        return True

    def take_rest(self) -> bytes | None:
        """The body, or the rest of it, where it has arrived to its end; else None, and nothing is taken."""
        connection = self._connection
        return connection.take() if connection is not None and connection.complete else None

    async def read(self) -> bytes:
        """The whole body, or the rest of it. Raises as `chunks`."""
        rest = self.take_rest()
        if rest is not None:
            return rest
        parts = [chunk async for chunk in self.chunks()]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Keep the connection for the next request if the body has ended; otherwise abort it: the request ends."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()


class Http1Connection(asyncio.Protocol):
    """One connection, with at most one request on it. The parser calls the methods `on_…`."""

    def __init__(self, client: Pool) -> None:
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
        self._take: Take | None = None  # gets what arrives, in place of a reader
        self._takes_more = True
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

    async def passed(self, take: Take) -> bool:
        """Hand what arrives to ``take``, until it has enough (returns False) or nothing more will come. Raises as
        `arrival`, and what ``take`` raises."""
        self._take, self._takes_more = take, True
        try:
            await self.arrival()
        finally:
            self._take = None
        return self._takes_more

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
        if self._take is None or not self._pass(self._take):
            self._wake()

    def _pass(self, take: Take) -> bool:
        """Hand on what has arrived; whether whoever waits for the body's end need not be woken."""
        waiter = self._waiter
        if waiter is None or waiter.done() or not self._parts:
            return False
        try:
            self._takes_more = take(self.take())
        except BaseException as error:
            if not waiter.done():  # it is where the response was closed before the fault
                waiter.set_exception(error)
            return True
        return self._takes_more and not self.complete and self.failure is None

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
