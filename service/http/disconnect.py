"""Tells a request's handler at once that its client has left, without a task that waits for it.

Hatrack's server puts a `Disconnect` into each request's ASGI scope: `scope["state"][DISCONNECT]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

DISCONNECT: Final = "hatrack.disconnect"


class Disconnect:
    """Whether a request's client has left, and what to call when it does."""

    __slots__ = ("_callback", "_happened", "is_endless")

    def __init__(self) -> None:
        self._callback: Callable[[], None] | None = None
        self._happened = False
        self.is_endless = False
        """The answer goes on until its client leaves: a server that stops does not wait for its end."""

    def subscribe(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` once the client leaves, at once if it has; None: call nothing."""
        self._callback = callback
        if self._happened and callback is not None:
            callback()

    def happen(self) -> None:
        """The client has left."""
        self._happened = True
        if self._callback is not None:
            self._callback()
