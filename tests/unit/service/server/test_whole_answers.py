"""A whole answer in one call of the server: the bytes that ASGI's `send` would give, or nothing at all."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.cors import Cors
from service.http.disconnect import DISCONNECT
from service.server.answer import MAX_JOINED_BYTES, AnswerTransport
from service.server.cycle import answer_now
from tests.unit.service.inference.fakes import World, completion
from tests.unit.service.server.served import HEAD, WITHIN_S, served

Header = tuple[bytes, bytes]
BODY = b'{"a":1}'
LENGTH = (b"content-length", b"%d" % len(BODY))


class Answering:
    """An app that answers at once where ``is_direct``, else by `send`; ``direct`` has what `answer_now` returned."""

    def __init__(self, *headers: Header, body: bytes = BODY, status: int = 200, is_direct: bool = True) -> None:
        self._headers, self._body, self._status, self._is_direct = headers, body, status, is_direct
        self.direct: list[bool] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        if self._is_direct:
            disconnect = scope["state"][DISCONNECT]
            self.direct.append(disconnect.answer_now(send, self._status, self._headers, self._body))
            if self.direct[-1]:
                assert not disconnect.answer_now(send, 200, [LENGTH], BODY), "it is answered"
                assert (await receive())["type"] == "http.disconnect"
                return
        await send({"type": "http.response.start", "status": self._status, "headers": list(self._headers)})
        await send({"type": "http.response.body", "body": self._body})


async def answers(app: Any, request: bytes, count: int = 2) -> bytes:
    """All that is sent for some requests on one connection, without the time of day."""
    async with served(app) as here:
        client = await here.connect()
        received = b""
        for _ in range(count):
            await client.send(request)
            head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), WITHIN_S)
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            has_body = not request.startswith(b"HEAD")
            received += head + (await client.reader.readexactly(length) if has_body else b"")
            if b"connection: close" in head:
                assert await client.closed() == b""
                break
        assert b"date: " in received
        return re.sub(rb"date: [^\r]+", b"date: now", received)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"x-request-id", b"r1"), (b"retry-after", b"7"), (b"x-hatrack-adapter", "b\xe9 @1\t".encode("latin-1"))),
        ((b"x-a", b"1"), (b"x-a", b"2"), (b"x-empty", b""), (b"keep-alive", b"x")),
    ],
)
@pytest.mark.parametrize(("status", "body"), [(200, BODY), (404, b""), (200, b"x" * (MAX_JOINED_BYTES + 1))])
async def test_an_answer_has_the_bytes_that_send_gives(headers: tuple[Header, ...], status: int, body: bytes) -> None:
    all_headers = (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers
    direct = Answering(*all_headers, body=body, status=status)
    sent = await answers(direct, HEAD + b"\r\n")
    assert direct.direct == [True, True]
    assert sent == await answers(Answering(*all_headers, body=body, status=status, is_direct=False), HEAD + b"\r\n")


@pytest.mark.parametrize(
    ("request_head", "headers"),
    [
        (b"HEAD /x HTTP/1.1\r\nhost: x\r\n", ()),
        (HEAD + b"connection: close\r\n", ()),
        (b"GET /x HTTP/1.0\r\nhost: x\r\n", ()),
        (HEAD, ((b"connection", b"close"),)),
        (HEAD, ((b"X-Upper", b"1"),)),
    ],
)
async def test_send_answers_what_is_not_a_plain_answer_on_a_kept_connection(
    request_head: bytes, headers: tuple[Header, ...]
) -> None:
    direct = Answering(LENGTH, *headers)
    sent = await answers(direct, request_head + b"\r\n")
    assert set(direct.direct) == {False}
    assert sent == await answers(Answering(LENGTH, *headers, is_direct=False), request_head + b"\r\n")


@pytest.mark.parametrize("value", [b"a\r\nx-forged: 1", b"a\nb", b"a\rb", b"a\x00", b"\x7f", b"\x1f"])
@pytest.mark.parametrize("is_name", [False, True])
async def test_no_header_can_add_a_line(value: bytes, is_name: bool) -> None:
    header = (b"x-" + value, b"1") if is_name else (b"x-a", value)
    direct = Answering(LENGTH, header)
    async with served(direct) as here:
        client = await here.connect()
        await client.send(HEAD + b"\r\n")
        assert await client.closed() == b"", "as by `send`, which raises"
    assert direct.direct == [False]


class Transport:
    """A transport that takes in what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


async def test_nothing_is_sent_at_once_where_send_would_wait_or_send_nothing() -> None:
    async def send(_message: Any) -> None:
        """The server's."""

    async def other(_message: Any) -> None:
        """A middleware's."""

    def state(*, paused: bool = False, **more: Any) -> RequestResponseCycle:
        fields = {
            **dict.fromkeys(("response_started", "response_complete", "disconnected", "access_log"), False),
            **{"keep_alive": True, "waiting_for_100_continue": False, "scope": {"method": "POST"}, "send": send},
            **{"flow": SimpleNamespace(write_paused=paused), "default_headers": [(b"date", b"today")]},
            **{"message_event": asyncio.Event(), "on_response": lambda: None},
        }
        return cast(RequestResponseCycle, SimpleNamespace(**fields | more))

    transport = Transport()
    to = AnswerTransport(cast(asyncio.Transport, transport), asyncio.get_running_loop())
    for cycle in (
        state(paused=True),
        *(state(**{name: True}) for name in ("response_started", "disconnected", "waiting_for_100_continue")),
        state(keep_alive=False),
        state(access_log=True),
    ):
        assert not answer_now(cycle, to, send, 200, [LENGTH], BODY)
    assert not answer_now(state(), to, other, 200, [LENGTH], BODY)
    assert not transport.written
    cycle = state()
    assert answer_now(cycle, to, send, 200, [LENGTH], BODY)
    assert transport.written == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 7\r\n\r\n" + BODY]
    assert (cycle.response_started, cycle.response_complete, cycle.message_event.is_set()) == (True, True, True)


@pytest.mark.parametrize("origins", [(), ("https://app.example.com",)])
async def test_a_middleware_that_adds_headers_is_not_passed_by(origins: tuple[str, ...]) -> None:
    world = World()
    world.engine.chunks = [completion("Ahoy")]
    app = Cors(world.app, origins) if origins else world.app
    body = b'{"model":"voice","messages":[{"role":"user","content":"Hello"}]}'
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a-key-of-the-tests\r\n"
        b"origin: https://app.example.com\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    )
    sent = await answers(app, request % (len(body), body))
    assert sent.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert sent.count(b"access-control-allow-origin: https://app.example.com\r\n") == (2 if origins else 0)
    assert sent.count(b"x-hatrack-adapter: voice@3\r\n") == 2
