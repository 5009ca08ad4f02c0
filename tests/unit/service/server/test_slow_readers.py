"""Answers for clients that read slowly: what is taken in for them, and when they are cut."""

from __future__ import annotations

import asyncio
import socket

import pytest
from starlette.types import Receive, Scope, Send

from service.http.disconnect import DISCONNECT
from service.server import connections
from service.server.answer import MIN_READ_BYTES_PER_S
from tests.unit.service.inference.fakes import until
from tests.unit.service.server.served import HEAD, Client, Served, served

LARGE = 6 * 1024 * 1024
"""Bytes of an answer: more than any kernel keeps for a connection on its own, less than the server takes in."""
PIECE = 16 * 1024


class Answering:
    """An app that answers in pieces; ``taken`` is how much the server has taken of the last answer."""

    def __init__(self, *, of_a_model: bool) -> None:
        self.of_a_model, self.taken, self.ended, self.asked = of_a_model, 0, False, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.taken, self.ended = 0, False
        self.asked += 1
        if self.of_a_model:
            scope["state"][DISCONNECT].buffer_answer()
        length = str(LARGE).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        while self.taken < LARGE:
            more = self.taken + PIECE < LARGE
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": more})
            self.taken += PIECE
        self.ended = True


async def asks_and_does_not_read(here: Served) -> Client:
    """A client whose own buffers are small and full."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.setblocking(False)
    await asyncio.get_running_loop().sock_connect(asking, ("127.0.0.1", here.port))
    client = Client(*await asyncio.open_connection(sock=asking, limit=4096))
    here.clients.append(client)
    await client.send(HEAD + b"\r\n")
    return client


async def test_a_model_s_answer_is_taken_in_whole_and_a_file_s_is_not() -> None:
    app = Answering(of_a_model=True)
    async with served(app) as here:
        client = await asks_and_does_not_read(here)
        await until(lambda: app.ended)
        app.of_a_model = False
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readexactly(LARGE)
        await client.send(HEAD + b"\r\n")
        await until(lambda: here.connection().flow.write_paused)
        assert app.taken < LARGE
        assert not app.ended


async def test_who_has_not_read_an_answer_gets_no_other() -> None:
    app = Answering(of_a_model=True)
    async with served(app) as here:
        client = await asks_and_does_not_read(here)
        await until(lambda: app.ended)
        await client.send(HEAD + b"\r\n")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert (app.asked, here.connection().flow.read_paused) == (1, True)
        for _ in range(2):
            await client.reader.readuntil(b"\r\n\r\n")
            await client.reader.readexactly(LARGE)
        assert app.asked == 2


async def test_all_answers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_UNREAD", LARGE // 4)
    app = Answering(of_a_model=True)
    async with served(app, keep_alive_s=1.0) as here:
        first = await asks_and_does_not_read(here)
        await until(lambda: app.ended and not here.connection()._connections.is_roomy)
        await asks_and_does_not_read(here)
        await until(lambda: 0 < app.taken < LARGE and any(each.flow.write_paused for each in protocols(here)))
        assert not app.ended
        await first.reader.readuntil(b"\r\n\r\n")
        await first.reader.readexactly(LARGE)
        first.writer.close()
        for client in here.clients[1:]:
            client.writer.transport.abort()
        await until(lambda: not here.connections)
        await asks_and_does_not_read(here)
        await until(lambda: here.connection()._connections.is_roomy)


def protocols(here: Served) -> list[connections.BoundedProtocol]:
    return [each for each in here.server.server_state.connections if hasattr(each, "limit_answer")]


@pytest.mark.parametrize(
    ("takes", "is_cut"),
    [
        (120 * MIN_READ_BYTES_PER_S, True),
        (2 * 240 * MIN_READ_BYTES_PER_S, True),  # enough for a small answer; of this one the rest would take hours
        (LARGE - 500_000, False),
    ],
)
async def test_who_takes_less_than_the_least_is_cut(takes: int, is_cut: bool) -> None:
    app = Answering(of_a_model=True)
    async with served(app, body_timeout_s=240.0, keep_alive_s=1000.0) as here:
        client = await asks_and_does_not_read(here)
        await until(lambda: app.ended)
        protocol, now = here.connection(), asyncio.get_running_loop().time()
        answers = protocol._answers
        protocol.check(now)
        protocol.check(now + 239)
        assert not protocol.transport.is_closing()
        taken = 0
        while taken < takes:
            taken += len(await client.reader.read(takes - taken))
        # its kernel tells only some time after it what it has made room for
        await until(lambda: is_cut or answers.unread < LARGE / 4)
        protocol.check(now + 241)
        assert protocol.transport.is_closing() == is_cut


async def test_no_answer_that_is_still_read_makes_room_for_others() -> None:
    app = Answering(of_a_model=True)
    async with served(app, max_connections=2) as here:
        slow = await asks_and_does_not_read(here)
        await until(lambda: app.ended)
        idle, refused = await here.connect(), await here.connect()
        app.of_a_model = False
        await refused.send(HEAD + b"\r\n")
        assert await idle.closed() == b"", "the idle one made room"
        await slow.reader.readuntil(b"\r\n\r\n")
        assert len(await slow.reader.readexactly(LARGE)) == LARGE


async def test_a_piece_is_written_at_once_only_where_nothing_has_to_wait() -> None:
    written: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        write_now = scope["state"][DISCONNECT].write_now
        length = [(b"content-length", b"2")] if scope["path"] == "/length" else []
        written.append(write_now(b"too early"))
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        if write_now(b"b"):
            written.append(True)
        else:
            written.append(False)
            await send({"type": "http.response.body", "body": b"b", "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        written.append(write_now(b"too late"))

    async with served(app) as here:
        for target, at_once, body in (
            ("/x", True, b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"),
            ("/length", False, b"ab"),
        ):
            written.clear()
            client = await here.connect()
            await client.send(f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            assert (await client.closed()).endswith(b"\r\n\r\n" + body)
            assert written == [False, at_once, False]


async def test_what_is_written_at_once_stops_where_the_client_does_not_read() -> None:
    progress = {"at once": 0, "waits": False}
    framed = b"%x\r\n%b\r\n" % (PIECE, bytes(PIECE))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while scope["state"][DISCONNECT].write_now(bytes(PIECE)):
            progress["at once"] += PIECE
            await asyncio.sleep(0)
            assert progress["at once"] < LARGE, "the server takes in all of it"
        progress["waits"] = True
        await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": False})

    async with served(app) as here:
        client = await asks_and_does_not_read(here)
        await until(lambda: bool(progress["waits"]))
        await client.reader.readuntil(b"1\r\na\r\n")
        for _ in range(progress["at once"] // PIECE + 1):
            assert await client.reader.readexactly(len(framed)) == framed
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"
