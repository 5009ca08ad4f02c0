"""How an answer leaves: its head with the first piece of its body, and never later than the loop's next turn."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, cast

from starlette.types import Receive, Scope, Send

from service.http.disconnect import DISCONNECT, Disconnect
from service.server.answer import MAX_JOINED_BYTES, AnswerTransport
from tests.unit.service.inference.fakes import until
from tests.unit.service.server.served import HEAD, WITHIN_S, served

ANSWER_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Socket:
    """Stands for the connection's transport; ``sent`` has what each system call would send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def answering() -> tuple[Socket, AnswerTransport]:
    socket = Socket()
    return socket, AnswerTransport(cast(asyncio.Transport, socket), asyncio.get_running_loop())


async def test_head_and_body_are_one_piece_and_what_follows_its_own() -> None:
    socket, transport = answering()
    for piece in (ANSWER_HEAD, b"a", b"b", b"c"):
        transport.write(piece)
    await asyncio.sleep(0)
    assert socket.sent == [ANSWER_HEAD + b"a", b"b", b"c"]


async def test_a_large_body_is_not_copied_to_join_its_head() -> None:
    socket, transport = answering()
    body = b"x" * (MAX_JOINED_BYTES + 1)
    transport.write(ANSWER_HEAD)
    transport.write(body)
    transport.write(b"a")
    await asyncio.sleep(0)
    assert socket.sent == [ANSWER_HEAD, body, b"a"]
    assert socket.sent[1] is body


async def test_a_head_waits_for_no_body() -> None:
    socket, transport = answering()
    transport.write(ANSWER_HEAD)
    await asyncio.sleep(0)
    assert socket.sent == [ANSWER_HEAD]
    transport.write(b"a")
    assert socket.sent == [ANSWER_HEAD, b"a"]


async def test_100_continue_is_no_head() -> None:
    socket, transport = answering()
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert len(socket.sent) == 1
    transport.write(ANSWER_HEAD)
    transport.write(b"a")
    assert socket.sent[1:] == [ANSWER_HEAD + b"a"]


async def test_a_head_is_sent_before_the_connection_is_closed() -> None:
    socket, transport = answering()
    transport.write(ANSWER_HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert (socket.sent, transport.is_closing()) == ([ANSWER_HEAD], True)


async def test_a_head_for_a_lost_connection_is_dropped() -> None:
    socket, transport = answering()
    transport.write(ANSWER_HEAD)
    socket.close()
    await asyncio.sleep(0)
    assert socket.sent == []


async def test_a_client_reads_the_head_before_there_is_a_body() -> None:
    has_read_head = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await has_read_head.wait()
        await send({"type": "http.response.body", "body": b"body"})

    async with served(app) as here:
        client = await here.connect()
        await client.send(HEAD + b"\r\n")
        head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), WITHIN_S)
        assert head.startswith(b"HTTP/1.1 200")
        has_read_head.set()
        assert await asyncio.wait_for(client.reader.readexactly(4), WITHIN_S) == b"body"


async def test_the_head_of_an_answer_without_a_body_is_sent_before_the_connection_ends() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"7")]})
        await send({"type": "http.response.body", "body": b"nowhere"})

    async with served(app) as here:
        client = await here.connect()
        await client.send(b"HEAD /x HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), WITHIN_S)
        assert head.startswith(b"HTTP/1.1 404")
        assert await client.closed() == b""


async def test_a_body_is_taken_at_once_only_where_all_of_it_has_arrived() -> None:
    taken: list[bytes | None] = []
    arrived = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        take_body = scope["state"][DISCONNECT].take_body
        taken.append(take_body())
        if taken == [None]:
            arrived.set()
            message = await receive()
            while message["more_body"]:
                message = await receive()
        taken.append(take_body())
        leaving = asyncio.create_task(cast("Coroutine[Any, Any, Any]", receive()))
        await asyncio.sleep(0)
        assert not leaving.done(), "the body is not there twice"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        assert (await leaving)["type"] == "http.disconnect"
        taken.append(take_body())

    head = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    async with served(app) as here:
        client = await here.connect()
        for parts, first in (
            ((head + b"\r\nbody",), b"body"),
            ((head.replace(b"4", b"0") + b"\r\n",), b""),
            ((head + b"\r\nbo", b"dy"), None),
            ((head + b"expect: 100-continue\r\n\r\nbody",), None),
        ):
            taken.clear()
            arrived.clear()
            for part in parts:
                await client.send(part)
                if len(parts) > 1:
                    await asyncio.wait_for(arrived.wait(), WITHIN_S)
            answer = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), WITHIN_S)
            if b"100 Continue" in answer:
                answer = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), WITHIN_S)
            assert answer.startswith(b"HTTP/1.1 200")
            await until(lambda: len(taken) == 3)
            assert taken == [first, None, None]


async def test_an_answered_request_is_freed_without_the_garbage_collector() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ab"})

    async with served(app) as here:
        client = await here.connect()
        gc.collect()
        before = sum(type(each) is Disconnect for each in gc.get_objects())
        gc.disable()
        try:
            for _ in range(50):
                assert (await client.ask(HEAD + b"\r\n")).body == b"ab"
            assert sum(type(each) is Disconnect for each in gc.get_objects()) <= before + 2
        finally:
            gc.enable()
