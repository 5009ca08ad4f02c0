"""All open connections: how many there may be, of whom, and for how long each may wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from service.client.addresses import client_ip, peer_of
from service.errors import HatrackError, RateLimited, Unavailable
from service.server.limits import ServerLimits

if TYPE_CHECKING:
    from service.server.protocol import BoundedProtocol

MAX_TURNED_AWAY: Final = 64
"""Connections beyond the limits that are kept for a moment, so that their client can read why."""
RETRY_S: Final = 2


class Connections:
    """Counts connections, in all and by client, makes room among those that wait, and ends those that wait too long.

    All of it happens on one event loop. Time is looked at by one timer for all connections, every second or, with short
    timeouts, four times within the shortest: a timeout may come that much late.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._open: dict[BoundedProtocol, str | None] = {}
        self._turned_away: set[BoundedProtocol] = set()
        self._waiting: dict[BoundedProtocol, None] = {}
        self._of_peer: Counter[str] = Counter()
        self._period_s = min(1.0, min(limits.header_timeout_s, limits.body_timeout_s, limits.keep_alive_s) / 4)
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: BoundedProtocol, address: str | None) -> HatrackError | None:
        """Take a new connection in, or say why not.

        Args:
            connection: The connection; it counts as waiting for a request.
            address: The client's IP address; None (a Unix socket) has no limit of its own.
        """
        peer = self._peer(address)
        if peer is not None and self._of_peer[peer] >= self.limits.max_peer_connections:
            return RateLimited(
                f"This address has {self.limits.max_peer_connections} connections open, and no more are allowed "
                "(HATRACK_MAX_PEER_CONNECTIONS); reuse connections, or close some.",
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
        self._waiting[connection] = None
        if peer is not None:
            self._of_peer[peer] += 1
        self._watch()
        return None

    def turn_away(self, connection: BoundedProtocol) -> bool:
        """Whether a connection that was not taken in may stay for a moment, until its client has read the answer."""
        if len(self._turned_away) >= MAX_TURNED_AWAY:
            return False
        self._turned_away.add(connection)
        self._watch()
        return True

    def working(self, connection: BoundedProtocol) -> None:
        """A request has begun on it: it is not closed to make room."""
        self._waiting.pop(connection, None)

    def waiting(self, connection: BoundedProtocol) -> None:
        """It waits for its next request."""
        if connection in self._open:
            self._waiting[connection] = None

    def forget(self, connection: BoundedProtocol) -> None:
        """It is closed. May be called twice."""
        self._turned_away.discard(connection)
        self._waiting.pop(connection, None)
        peer = self._open.pop(connection, None)
        if peer is not None:
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request; False where none waits."""
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        self.forget(longest)
        longest.drop()
        return True

    def _peer(self, address: str | None) -> str | None:
        """Under what name the connections of an address are counted; None: they are not."""
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
        for connection in (*self._open, *self._turned_away):
            connection.check(now)
        if self._open or self._turned_away:
            self._watch()
