"""A lean HTTP/1.1 client for the data path: one parser in C (httptools), no layers between it and the caller.

It does what the way to an engine needs and nothing else: whole request bodies, responses as they come, connections that
are kept. It follows no redirect, decodes no content, keeps no cookies and never sends a request twice. Per request it
takes a fraction of the CPU time of a general client (`python -m loadtests.gateway.run`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from service.client.addresses import is_http
from service.http.addresses import connect_unix
from service.http.http1_response import Http1Connection, Http1Response, MakeError


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
        self._idle: list[Http1Connection] = []  # the most recently used is the last
        self._open: set[Http1Connection] = set()
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

    def _kept(self) -> Http1Connection | None:
        """An idle connection that is young enough and still open."""
        oldest = asyncio.get_running_loop().time() - self._keep_alive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Http1Connection:
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

    async def _dial(self) -> Http1Connection:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            connected = connect_unix(self._socket)
            return (await loop.create_unix_connection(lambda: Http1Connection(self), sock=connected))[1]
        return (await loop.create_connection(lambda: Http1Connection(self), self._host, self._port, ssl=self._tls))[1]

    @property
    def awaiting(self) -> int:
        """Requests for which the server has something to send, and nothing of it waits here for its reader."""
        return sum(connection.awaits for connection in self._open)

    # called by connections

    def lost(self, connection: Http1Connection) -> None:
        """Forget a connection that was closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def keep(self, connection: Http1Connection) -> None:
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


def _head_lines(headers: Mapping[str, str]) -> str:
    """The headers as lines. Raises ValueError: one has a line break, or a character that HTTP does not allow."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a header has a line break or a null character")
    return lines
