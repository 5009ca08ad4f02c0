"""What a client may take that has shown no key: bytes, time and connections all have a bound."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import pytest

from service.server.protocol import BoundedProtocol
from tests.unit.service.inference.fakes import until
from tests.unit.service.server.served import HEAD, WITHIN_S, Echo, served

POST = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
MIB = 2**20
ENOUGH = 60_000
"""Bytes of a body in `WITHIN_S` and a little more, at a rate that is just waited for."""


@pytest.mark.parametrize(
    ("request_head", "refusal"),
    [
        (HEAD + b"a: " + b"x" * 40_000 + b"\r\n\r\n", (431, "headers_too_large")),
        (HEAD + b"".join(b"a%d: %s\r\n" % (n, b"x" * 1000) for n in range(40)) + b"\r\n", (431, "headers_too_large")),
        (HEAD + b"".join(b"a%d:\r\n" % n for n in range(101)) + b"\r\n", (431, "headers_too_large")),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", (414, "uri_too_long")),
        (b"GET /?" + b"x" * 9000, (414, "uri_too_long")),
    ],
    ids=["one large header", "many of a kilobyte", "too many", "a long path", "a long query without an end"],
)
async def test_a_head_has_a_size(request_head: bytes, refusal: tuple[int, str]) -> None:
    app = Echo()
    async with served(app) as here:
        client = await here.connect()
        answer = await client.ask(request_head)
        assert answer.error() == refusal
        assert answer.headers["connection"] == "close"
        assert await client.closed() == b""
    assert app.asked == []


async def test_a_head_within_the_bounds_is_read() -> None:
    many = b"".join(b"a%d: %s\r\n" % (n, b"x" * 300) for n in range(98))
    async with served(Echo()) as here:
        client = await here.connect()
        for _ in range(3):  # what the last one took does not count
            assert (await client.ask(HEAD + many + b"\r\n")).status == 200


@pytest.mark.parametrize("start", [HEAD + b"a: ", b"GET /", HEAD + b"a", b""])
async def test_a_head_without_an_end_is_not_kept(start: bytes) -> None:
    """32 MB of one header took the loop a second, and as much memory."""
    async with served(Echo()) as here:
        client = await here.connect()
        await client.send(start)
        sent = 0
        try:
            while sent < 32 * MIB:
                await client.send(b"x" * 2**16)
                sent += 2**16
        except ConnectionError:
            pass
        assert sent < 32 * MIB, "all of it was read"
        await until(lambda: not here.connections)


async def test_trailers_and_chunk_extensions_have_no_room() -> None:
    chunked = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    for endless in (b"1;a=", b"1\r\nx\r\n0\r\na: "):
        async with served(Echo()) as here:
            client = await here.connect()
            await client.send(chunked + endless)
            refused = asyncio.create_task(client.answer())
            while not refused.done():
                client.writer.write(b"x" * 4096)
                await asyncio.sleep(0)
            assert (await refused).error() == (400, "trailers_not_allowed")


async def test_a_silent_connection_is_closed() -> None:
    async with served(Echo(), header_timeout_s=0.2) as here:
        client = await here.connect()
        assert await client.closed() == b"", "who has asked for nothing is told nothing"
        await until(lambda: not here.connections)


async def comes(connection: BoundedProtocol, count: int) -> None:
    """Wait until the server has read this much of a head."""
    await until(lambda: connection._head_bytes == count)


@pytest.mark.parametrize(
    ("part", "more"),
    [(b"G", b"ET "), (HEAD, b"abc"), (b"\r\n", b"\r\n\r"), (HEAD + b"a: b\r\n", b"abc")],
)
@pytest.mark.parametrize("used_before", [False, True])
async def test_a_head_that_does_not_come_is_not_waited_for(part: bytes, more: bytes, used_before: bool) -> None:
    async with served(Echo()) as here:
        client = await here.connect()
        if used_before:
            assert (await client.ask(HEAD + b"\r\n")).status == 200
        await client.send(part)
        await until(lambda: here.connections)
        connection, come = here.connection(), len(part)
        await comes(connection, come)
        began = connection._since
        for byte in more:  # a byte now and then gives no more time
            await client.send(bytes([byte]))
            come += 1
            await comes(connection, come)
        connection.check(began + WITHIN_S - 0.1)
        assert connection._phase == "head"
        connection.check(began + WITHIN_S + 0.1)
        assert (await client.answer()).error() == (408, "request_timeout")
        assert await client.closed() == b""


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    app = Echo()
    async with served(app, body_timeout_s=0.2) as here:
        for body in (b"", b"x" * 30):
            client = await here.connect()
            answer = await client.ask(POST % 1000 + body)
            assert answer.error() == (408, "request_timeout")
            assert await client.closed() == b""
        await until(lambda: app.left == 2)


async def test_a_body_that_comes_byte_by_byte_is_not_waited_for() -> None:
    async with served(Echo(), body_timeout_s=0.3) as here:
        client = await here.connect()
        refused = asyncio.create_task(client.answer())
        await client.send(POST % 10**6)
        while not refused.done():
            client.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert (await refused).error() == (408, "request_timeout")


async def test_a_body_may_take_its_time_while_it_comes() -> None:
    app = Echo()
    async with served(app) as here:
        client = await here.connect()
        await client.send(POST % 10**6)
        await until(lambda: app.asked)
        connection = here.connection()
        now = connection._since
        for number in range(1, 5):
            await client.send(b"x" * ENOUGH)
            await app.has_read(number * ENOUGH)
            now += WITHIN_S + 1
            connection.check(now)
        await client.send(b"x" * (ENOUGH - 3000))
        await app.has_read(5 * ENOUGH - 3000)
        connection.check(now + WITHIN_S - 1)
        assert connection._phase == "body"
        connection.check(now + WITHIN_S + 1)
        assert (await client.answer()).error() == (408, "request_timeout")


async def test_a_body_that_the_app_does_not_read_yet_is_not_called_slow() -> None:
    app = Echo()
    app.go.clear()
    async with served(app) as here:
        client = await here.connect()
        await client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 300_000)
        connection = here.connection()
        await until(lambda: connection.flow.read_paused)
        now = connection._since
        for _ in range(10):
            now += 2 * WITHIN_S
            connection.check(now)
        app.go.set()
        assert (await client.answer()).status == 200


async def test_the_rest_of_a_body_that_was_answered_is_not_waited_for() -> None:
    """A request without a key is answered before its body has come."""
    async with served(Echo()) as here:
        client = await here.connect()
        assert (await client.ask(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n")).status == 200
        connection, sent = here.connection(), 0
        await until(lambda: connection._phase == "drain")
        began = connection._since
        for later in (WITHIN_S / 2, WITHIN_S - 1):
            await client.send(b"x" * 100_000)  # that more of it comes gives no more time
            sent += 100_000
            await until(lambda: connection._body_bytes == sent)  # noqa: B023
            connection.check(began + later)
            assert here.connections == 1
        connection.check(began + WITHIN_S + 1)
        await until(lambda: not here.connections)


async def test_the_rest_of_a_body_that_was_answered_is_no_request() -> None:
    body = HEAD + b"\r\n"
    async with served(Echo()) as here:
        client = await here.connect()
        first = await client.ask(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        second = await client.ask(body + b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (first.body, second.body) == (b"/unread", b"/second")
        # who waits to be told to go on may send the body or something else: nobody can tell
        expecting = b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
        assert (await client.ask(b"POST /unread HTTP/1.1\r\nhost: x\r\n" + expecting)).body == b"/unread"
        assert await client.closed() == b""


async def test_a_client_that_reads_nothing_of_its_answer_is_left() -> None:
    app = Echo()
    async with served(app, body_timeout_s=0.2) as here:
        mine = socket.socket()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mine.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(mine, ("127.0.0.1", here.port))
        await loop.sock_sendall(mine, b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await until(lambda: app.asked)
        await until(lambda: not here.connections)
        mine.close()


async def test_an_idle_connection_is_closed() -> None:
    async with served(Echo(), keep_alive_s=0.2, header_timeout_s=WITHIN_S) as here:
        client = await here.connect()
        assert (await client.ask(HEAD + b"\r\n")).status == 200
        assert await client.closed() == b""


async def test_one_address_has_its_share_of_connections() -> None:
    app = Echo()
    async with served(app, max_peer_connections=2, trusted_proxies="") as here:
        first, second = [await here.connect() for _ in range(2)]
        for client in (first, second):
            assert (await client.ask(HEAD + b"\r\n")).status == 200
        third = await here.connect()
        answer = await third.answer()
        assert answer.error() == (429, "too_many_connections")
        assert int(answer.headers["retry-after"]) > 0
        assert await third.closed() == b""
        third.writer.close()
        assert (await second.ask(HEAD + b"\r\n")).status == 200
        first.writer.close()
        await until(lambda: here.connections == 1)
        assert (await here.ask(HEAD + b"\r\n")).status == 200
    assert len(app.asked) == 4


async def test_a_trusted_proxy_has_no_share() -> None:
    async with served(Echo(), max_peer_connections=2, trusted_proxies="10.0.0.0/8 127.0.0.1") as here:
        clients = [await here.connect() for _ in range(10)]
        for client in clients:
            assert (await client.ask(HEAD + b"\r\n")).status == 200


async def test_a_new_connection_takes_the_place_of_the_one_that_waits_longest() -> None:
    app = Echo()
    async with served(app, max_connections=16) as here:
        clients = [await here.connect() for _ in range(16)]
        await until(lambda: here.connections == 16)
        assert (await clients[0].ask(HEAD + b"\r\n")).status == 200  # and waits from now on
        await clients[2].send(HEAD)  # a part of a request is none
        for number in (1, 2):
            assert (await (await here.connect()).ask(HEAD + b"\r\n")).status == 200
            assert await clients[number].closed() == b""
        assert (await clients[0].ask(HEAD + b"\r\n")).status == 200
        await until(lambda: here.connections == 16)


async def test_where_all_connections_are_in_use_a_new_one_is_refused() -> None:
    app = Echo()
    app.go.clear()
    async with served(app, max_connections=16) as here:
        clients = [await here.connect() for _ in range(16)]
        for client in clients:
            await client.send(HEAD + b"\r\n")
        await until(lambda: len(app.asked) == 16)
        answer = await (await here.connect()).answer()
        assert answer.error() == (503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
        app.go.set()
        assert {(await client.answer()).status for client in clients} == {200}
        assert (await here.ask(HEAD + b"\r\n")).status == 200


async def test_many_refused_clients_take_no_place() -> None:
    """Each is let go after a moment, though it does not close."""
    async with served(Echo(), max_peer_connections=1, trusted_proxies="") as here:
        kept = await here.connect()
        assert (await kept.ask(HEAD + b"\r\n")).status == 200
        refused = [await here.connect() for _ in range(80)]
        for client in refused[:60]:
            assert (await client.answer()).error() == (429, "too_many_connections")
        kept.writer.close()
        await until(lambda: not here.connections)


async def test_requests_behind_one_that_is_worked_on_are_not_read() -> None:
    app = Echo()
    app.go.clear()
    async with served(app) as here:
        client = await here.connect()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % n for n in range(1000)))
        await until(lambda: app.asked)
        app.go.set()
        assert (await client.answer()).body == b"/0"
        assert await client.closed() == b""
    assert app.asked == ["/0"]


@pytest.mark.parametrize("path", [b"/watched", b"/noticed"])
async def test_a_client_that_leaves_is_seen_also_when_it_has_sent_more(path: bytes) -> None:
    """Or what it asked for would be worked on to its end, for nobody."""
    app = Echo()
    app.go.clear()
    async with served(app) as here:
        client = await here.connect()
        await client.send(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path + HEAD + b"\r\n" + POST % 10**6 + b"x" * 20_000)
        await until(lambda: app.asked)
        client.writer.close()
        await until(lambda: app.left)


@pytest.mark.parametrize("size", [1, 2**20])
async def test_the_server_tells_that_a_client_has_left(size: int) -> None:
    """Also after a body so large that the server paused reading."""
    app = Echo()
    app.go.clear()
    async with served(app) as here:
        client = await here.connect()
        await client.send(b"POST /noticed HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        await app.has_read(size)
        client.writer.close()
        await until(lambda: app.left)
        await until(lambda: not here.connections)
    assert app.left == 1


async def test_a_client_that_got_its_answer_has_not_left() -> None:
    app = Echo()
    async with served(app) as here:
        client = await here.connect()
        for _ in range(2):
            assert (await client.ask(b"GET /noticed HTTP/1.1\r\nhost: x\r\n\r\n")).status == 200
        client.writer.close()
        await until(lambda: not here.connections)
    assert app.left == 0


@pytest.mark.parametrize("path", [b"/watched", b"/noticed"])
async def test_who_goes_on_sending_behind_its_request_is_left(path: bytes) -> None:
    app = Echo()
    app.go.clear()
    async with served(app) as here:
        client = await here.connect()
        await client.send(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        await until(lambda: app.asked)
        while not app.left:
            client.writer.write(b"x" * 4096)
            await asyncio.sleep(0)


async def test_other_protocols_are_not_spoken() -> None:
    upgrade = b"connection: upgrade\r\nupgrade: %s\r\n"
    async with served(Echo()) as here:
        for protocol in (b"websocket", b"h2c"):
            client = await here.connect()
            answer = await client.ask(HEAD + upgrade % protocol + b"\r\n" + HEAD + b"\r\n")
            assert (answer.status, answer.body) == (200, b"/x"), "it is ignored, as HTTP allows"
            assert await client.closed() == b""
        answer = await here.ask(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n" + upgrade % b"h2c" + b"\r\nx")
        assert answer.error() == (400, "invalid_http")


def test_no_more_connections_than_the_process_may_open_files() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (300, {hard}))\n"
        "from service.config import Settings\n"
        "from service.server.limits import ServerLimits, fit_to_open_files\n"
        "print(fit_to_open_files(ServerLimits.of(Settings(engine_device='cpu'))),\n"
        "      resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    for hard, most in ((600, "172 600"), (5000, "2048 4352")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(hard=hard)], capture_output=True, text=True, check=True
        )
        assert done.stdout.split("\n")[0] == most
