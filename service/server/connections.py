"""Limits on open connections: in total, per client, and how long each may be idle."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from service.client.addresses import client_ip, peer_of
from service.errors import HatrackError, RateLimited, Unavailable
from service.server.answer import MAX_UNREAD
from service.server.limits import ServerLimits

if TYPE_CHECKING:
    from service.server.protocol import BoundedProtocol

MAX_REJECTED: Final = 64
"""Maximum number of rejected connections kept open briefly, so that their clients can read the error."""
RETRY_S: Final = 2


class Connections:
    """Counts connections in total and per client, closes idle ones to make room, and closes those that time out.

    Runs on one event loop. One timer checks all connections, every second or, with short timeouts, four times within
    the shortest, so a timeout may be late by that much.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._open: dict[BoundedProtocol, str | None] = {}
        self._rejected: set[BoundedProtocol] = set()
        self._idle: dict[BoundedProtocol, None] = {}
        self._of_peer: Counter[str] = Counter()
        self._period_s = min(1.0, min(limits.header_timeout_s, limits.body_timeout_s, limits.keep_alive_s) / 4)
        self._timer: asyncio.TimerHandle | None = None
        self.is_roomy = True
        """Answers may be buffered for slow clients: what all of them have not read yet is little enough."""

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: BoundedProtocol, address: str | None) -> HatrackError | None:
        """Accept a new connection, or return the error to reject it with.

        Args:
            connection: The connection; it counts as idle.
            address: The client's IP address; None (a Unix socket): no limit per client.
        """
        peer = self._peer(address)
        if peer is not None and self._of_peer[peer] >= self.limits.max_peer_connections:
            return RateLimited(
                f"This client address has {self.limits.max_peer_connections} open connections, the maximum "
                "(HATRACK_MAX_PEER_CONNECTIONS); reuse connections or close some.",
                code="too_many_connections",
                headers={"retry-after": str(RETRY_S)},
            )
        if len(self._open) >= self.limits.max_connections and not self._make_room():
            return Unavailable(
                f"All {self.limits.max_connections} connections are in use (HATRACK_MAX_CONNECTIONS); try again later.",
                retry_after=RETRY_S,
                code="overloaded",
            )
        self._open[connection] = peer
        self._idle[connection] = None
        if peer is not None:
            self._of_peer[peer] += 1
        self._watch()
        return None

    def keep_rejected(self, connection: BoundedProtocol) -> bool:
        """Whether a rejected connection may stay open briefly, until its client has read the answer."""
        if len(self._rejected) >= MAX_REJECTED:
            return False
        self._rejected.add(connection)
        self._watch()
        return True

    def mark_active(self, connection: BoundedProtocol) -> None:
        """A request has begun: the connection is not closed to make room."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: BoundedProtocol) -> None:
        """The connection waits for its next request."""
        if connection in self._open:
            self._idle[connection] = None

    def forget(self, connection: BoundedProtocol) -> None:
        """Remove a closed connection. May be called twice."""
        self._rejected.discard(connection)
        self._idle.pop(connection, None)
        peer = self._open.pop(connection, None)
        if peer is not None:
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]

    def _bound_unread(self) -> None:
        unread = sum(connection.unread for connection in self._open)
        if unread > MAX_UNREAD:
            self.is_roomy = False
            for connection in self._open:
                connection.limit_answer()
        elif unread < MAX_UNREAD // 2:
            self.is_roomy = True

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest, and whose client has all of its answer; False: none is."""
        oldest = next((connection for connection in self._idle if not connection.unread), None)
        if oldest is None:
            return False
        self.forget(oldest)
        oldest.drop()
        return True

    def _peer(self, address: str | None) -> str | None:
        """The key under which an address's connections are counted; None: they are not."""
        ip = None if address is None else client_ip(address)
        if ip is None or any(ip in network for network in self.limits.trusted_proxies):
            return None
        return peer_of(ip)

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period_s, self._check)

    def _check(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in (*self._open, *self._rejected):
            connection.check(now)
        self._bound_unread()
        if self._open or self._rejected:
            self._watch()
