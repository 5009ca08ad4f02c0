"""What a request's handler may do without ASGI's coroutines, on uvicorn's state of the request (its cycle)."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


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
