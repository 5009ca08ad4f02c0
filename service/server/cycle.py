"""What a request's handler may do without ASGI's coroutines, on uvicorn's state of the request (its cycle)."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.http.disconnect import Headers, Send
from service.server.answer import AnswerTransport

_TOKEN: Final = b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~"
"""The bytes of a header's name, in lower case (RFC 9110, section 5.6.2)."""
_CONTROLS: Final = bytes(byte for byte in (*range(32), 127) if byte != ord("\t"))
"""The bytes that no header's value may have."""
_OF_CONNECTION: Final = frozenset({b"connection", b"transfer-encoding"})
"""Headers that tell uvicorn what to do with the connection."""


def take_body(cycle: RequestResponseCycle) -> bytes | None:
    """As ``cycle.receive`` for the last part of a body, mostly the whole; None: that must be called.

    It is None where the part has not arrived to its end or was taken, where the client waits for a 100 Continue, and
    where the client has left or was answered.
    """
    if (cycle.more_body or cycle.waiting_for_100_continue or not cycle.message_event.is_set()) or (
        cycle.disconnected or cycle.response_complete
    ):
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.message_event.clear()
    return body


def answer_now(
    cycle: RequestResponseCycle, answers: AnswerTransport, send: Send, status: int, headers: Headers, body: bytes
) -> bool:
    """As ``cycle.send`` with a whole answer, byte for byte; False: nothing was sent, and ``send`` must be called.

    It is False where ``send`` is not the cycle's own, where the client reads slowly or has left, where the connection
    is to be closed after the answer, and for headers that ``cycle.send`` would not pass on as they are.
    """
    if (cycle.response_started or cycle.disconnected or cycle.flow.write_paused or not cycle.keep_alive) or (
        cycle.waiting_for_100_continue or cycle.access_log or cycle.scope["method"] == "HEAD" or send != cycle.send
    ):
        return False
    if cycle.default_headers:
        headers = [*cycle.default_headers, *headers]
    names, values = zip(*headers, strict=True)
    joined_values = b"".join(values)
    if b"".join(names).translate(None, _TOKEN) or len(joined_values.translate(None, _CONTROLS)) != len(joined_values):
        return False
    if not _OF_CONNECTION.isdisjoint(names):
        return False
    lines = [b"%b: %b\r\n" % header for header in headers]
    cycle.response_started = cycle.response_complete = True
    answers.write_whole(b"%b%b\r\n" % (STATUS_LINE[status], b"".join(lines)), body)
    cycle.message_event.set()
    cycle.on_response()
    return True
