"""What Hatrack's server and a request's handler tell each other beside ASGI.

The server tells at once that the client has left, without a task that waits for it; the handler, what kind of answer
it gives. The server puts a `Disconnect` into each request's ASGI scope: `scope["state"][DISCONNECT]`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

DISCONNECT: Final = "hatrack.disconnect"
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


def only_send(_data: bytes) -> bool:
    """The `write_now` of an answer whose pieces ASGI's `send` alone can send."""
    return False


def only_send_whole(_send: Send, _status: int, _headers: Headers, _body: bytes) -> bool:
    """The `answer_now` of an answer that ASGI's `send` alone can send."""
    return False


def only_receive() -> None:
    """The `take_body` of a request whose body ASGI's `receive` alone brings."""


class Disconnect:
    """Whether a request's client has left, and what to call when it does."""

    __slots__ = ("_callback", "answer_now", "buffer_answer", "happened", "is_endless", "take_body", "write_now")

    def __init__(self, buffer_answer: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = None
        self.buffer_answer = buffer_answer
        """Call it for an answer that is no larger than a model's: the server takes it in, within its bounds, so that
        a client that reads slowly holds nothing up."""
        self.answer_now: Callable[[Send, int, Headers, bytes], bool] = only_send_whole
        """Send a whole answer (the handler's ASGI `send`, status, headers with the body's `content-length`, body) as
        `send` would, without its coroutine; returns False, and sends nothing, where only `send` can: it is not the
        server's own, the client reads slowly or has left, or the connection is to be closed."""
        self.write_now: Callable[[bytes], bool] = only_send
        """Send a piece of an answer that has begun, as ASGI's `send` would, without its coroutine; returns False, and
        sends nothing, where only `send` can: the client reads slowly, or has left."""
        self.take_body: Callable[[], bytes | None] = only_receive
        """Take the rest of the request's body, as ASGI's `receive` would bring it; returns None where only `receive`
        can tell what is next: its end has not arrived, or the client has left."""
        self.happened = False
        """The client has left."""
        self.is_endless = False
        """The answer goes on until its client leaves: a server that stops does not wait for its end."""

    def subscribe(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` once the client leaves, at once if it has; None: call nothing."""
        self._callback = callback
        if self.happened and callback is not None:
            callback()

    def happen(self) -> None:
        """The client has left."""
        self.happened = True
        if self._callback is not None:
            self._callback()

    def end(self) -> None:
        """The answer is over, or its client has left: refer to nothing of it, so that it is freed at once."""
        self.answer_now = only_send_whole
        self.take_body = only_receive
        self.write_now = only_send
