"""Connections to another Hatrack process: over its Unix socket, or over TCP if it has a URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp


class PeerResponse:
    """The answer of another process to one request."""

    __slots__ = ("_response",)

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in any case."""
        return self._response.headers


class ConnectionPool:
    """An `aiohttp.ClientSession` that is opened on first use, and again after it was closed.

    It has no connection limit and no timeout except for connecting; callers limit their requests themselves. Each
    request is sent once: one whose connection is lost may have been carried out.

    Args:
        socket: Path of the Unix socket; None: use TCP.
        connect_s: Connect timeout over TCP, s. A Unix socket connects at once or fails at once: a timer there would
            only turn away requests on a busy machine.
        keep_alive_s: How long an idle connection is kept, s; must be less than on the other side.
        options: Further options of the session.
    """

    def __init__(self, socket: str | None, *, connect_s: float, keep_alive_s: float, **options: Any) -> None:
        self._socket = socket
        self._connect_s = connect_s
        self._keep_alive_s = keep_alive_s
        self._options = options
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session; needs a running event loop."""
        if self._session is None or self._session.closed:
            connector: aiohttp.BaseConnector = (
                aiohttp.UnixConnector(self._socket, limit=0, keepalive_timeout=self._keep_alive_s)
                if self._socket
                else aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keep_alive_s)
            )
            connect_s = None if self._socket else self._connect_s
            timeout = aiohttp.ClientTimeout(total=None, connect=connect_s, sock_connect=connect_s)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, **self._options)
            # aiohttp repeats a DELETE, too, and has no public way to say no: a client would be told that what it has
            # deleted is not there. That this still works the pool's test looks at.
            self._session._retry_connection = False
        return self._session

    async def close(self) -> None:
        """Close the connections; requests in flight end."""
        session, self._session = self._session, None  # whoever asks meanwhile gets a new one, which stays
        if session is not None:
            await session.close()
