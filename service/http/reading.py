"""Bounds the memory of request bodies that are being read: whoever sends them slowly holds what has arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.errors import RateLimited, Unavailable

MIB: Final = 1024 * 1024
MAX_BYTES: Final = 256 * MIB
"""Of all bodies that a process is reading."""
MAX_PEER_BYTES: Final = 64 * MIB
"""Of those from one address."""
RETRY_S: Final = 1


class BodiesRead:
    """The bodies that are being read. One alone, of all or of its address, is never refused: its own limit holds.

    Args:
        max_bytes: Of all of them.
        max_peer_bytes: Of those from one address.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_peer_bytes: int = MAX_PEER_BYTES) -> None:
        self._max_bytes = max_bytes
        self._max_peer_bytes = max_peer_bytes
        self._of_peer: Counter[str] = Counter()
        self.bytes = 0
        """Of all of them."""

    @contextmanager
    def reading(self, peer: str) -> Iterator[BodyRead]:
        """A body from an address is read for as long as the context."""
        body = BodyRead(self, peer)
        try:
            yield body
        finally:
            self._take(peer, -body.bytes)

    def _take(self, peer: str, size: int) -> None:
        self.bytes += size
        self._of_peer[peer] += size
        if not self._of_peer[peer]:
            del self._of_peer[peer]

    def add(self, body: BodyRead, size: int) -> None:
        """Count what has arrived of a body. Raises RateLimited, Unavailable."""
        body.bytes += size
        self._take(body.peer, size)
        of_peer = self._of_peer[body.peer]
        if of_peer > self._max_peer_bytes and of_peer > body.bytes:
            raise RateLimited(
                f"the bodies that are being read from this client address have more than {self._max_peer_bytes} bytes; "
                "send fewer large ones at once",
                headers={"retry-after": str(RETRY_S), "connection": "close"},
            )
        if self.bytes > self._max_bytes and self.bytes > body.bytes:
            message = f"the bodies that are being read have more than {self._max_bytes} bytes; retry later"
            overloaded = Unavailable(message, retry_after=RETRY_S, code="overloaded")
            overloaded.headers["connection"] = "close"
            raise overloaded


class BodyRead:
    """One body that is being read; ``bytes`` have arrived."""

    __slots__ = ("_bodies", "bytes", "peer")

    def __init__(self, bodies: BodiesRead, peer: str) -> None:
        self._bodies = bodies
        self.peer = peer
        self.bytes = 0

    def add(self, size: int) -> None:
        """Count what has arrived. Raises RateLimited or Unavailable where all bodies together are too large."""
        self._bodies.add(self, size)


BODIES: Final = BodiesRead()
"""Those of this process, whichever route they are for: they share its memory."""
