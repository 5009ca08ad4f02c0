"""A connection's answers on their way to the client: written in few calls, held within bounds while it reads slowly."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from typing import Final

HIGH_WATER: Final = 64 * 1024
"""Unread bytes of a connection above which whoever writes an answer waits (uvicorn's limit)."""
MAX_BUFFERED: Final = 8 * 1024 * 1024
"""The same for the answers of models: all of what a context of 32,000 tokens can hold, or 4,000 tokens with 20
alternatives each. A model's answer is taken in at the model's pace, so that a place in the engine is free once the
engine is done, however slowly its client reads."""
MAX_UNREAD: Final = 64 * 1024 * 1024
"""Unread bytes of all connections above which every connection has `HIGH_WATER` again."""
MAX_JOINED_BYTES: Final = 64 * 1024
"""The largest piece that is copied to leave in one system call with its head: an answer may have 256 MiB."""
MIN_READ_BYTES_PER_S: Final = 240
"""The minimum rate at which a client takes what waits for it (Kestrel's default); slower ones are cut."""
DRAIN_S: Final = 300.0
"""And it must be fast enough to take all of that within this time, s: a few must not hold `MAX_UNREAD` for hours."""
_CONTINUE: Final = b"HTTP/1.1 100"


class AnswerTransport:
    """A connection's transport for its answers: a head leaves with the first piece of its body, in one system call.

    A head whose body is late leaves in the loop's next turn; one whose body is large, just before it.
    """

    __slots__ = ("_begun", "_head", "_is_deep", "_loop", "_since", "_taken", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._begun = False
        self._is_deep = False
        self._written = 0
        self._since: float | None = None
        self._taken = 0

    def begin(self) -> None:
        """What is written from now on is another answer."""
        self._head, self._begun = b"", False

    def write(self, data: bytes) -> None:
        """Send a piece of the answer, in order."""
        if self._head:
            if len(data) > MAX_JOINED_BYTES:
                self.flush()
            else:
                data, self._head = self._head + data, b""
        elif not self._begun and not data.startswith(_CONTINUE):
            self._begun, self._head = True, data
            self._loop.call_soon(self.flush)
            return
        self._written += len(data)
        self._transport.write(data)

    def write_whole(self, head: bytes, body: bytes) -> None:
        """Send an answer of which nothing was written yet."""
        self._begun = True
        if len(body) > MAX_JOINED_BYTES:
            self.write(head)
            self.write(body)
        else:
            self.write(head + body)

    def close(self) -> None:
        """Send what is written, and close."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._transport.is_closing()

    def flush(self) -> None:
        """Send the head, if it still waits for the body."""
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._written += len(head)
            self._transport.write(head)

    @property
    def unread(self) -> int:
        """Bytes that wait for the client to read."""
        return self._transport.get_write_buffer_size()

    def deepen(self) -> None:
        """Let the writer go on up to `MAX_BUFFERED` unread bytes."""
        if not self._is_deep and not self._transport.is_closing():  # uvloop raises for a closed one
            self._is_deep = True
            self._transport.set_write_buffer_limits(high=MAX_BUFFERED)

    def limit(self) -> None:
        """Have the writer wait above `HIGH_WATER` again."""
        if self._is_deep and not self._transport.is_closing():
            self._is_deep = False
            self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def is_stalled(self, now: float, window_s: float) -> bool:
        """Whether something waited for the client for ``window_s`` or longer, and it took less than the minimum of it.

        Call it again and again; ``now`` is on the loop's clock.
        """
        if not self.unread:
            self._since = None
            return False
        if self._since is not None and now - self._since <= window_s:
            return False
        taken = self._written - self.unread - self._in_kernel()
        least = max(MIN_READ_BYTES_PER_S, self.unread / DRAIN_S)
        if self._since is not None and taken - self._taken < least * (now - self._since):
            return True
        self._since, self._taken = now, taken
        return False

    def _in_kernel(self) -> int:
        """Bytes that the kernel holds for the client: it makes room for more only once much of that is gone."""
        socket = self._transport.get_extra_info("socket")
        try:
            return int.from_bytes(fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except (OSError, AttributeError):  # closed, or a system that does not tell
            return 0
