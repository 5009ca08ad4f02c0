"""The data path's HTTP client against a server that sends what the test says, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from service.http import http1_response
from tests.unit.service.http.raw_server import (
    HELLO,
    OK,
    Cut,
    Fetch,
    Unreachable,
    client_of,
    fetch,
    on_both_ways,
    says,
    server,
)
from tests.unit.service.inference.fakes import until


async def test_a_request_has_its_headers_and_its_body_and_the_next_takes_the_same_connection(tmp_path: Path) -> None:
    async with server(tmp_path, says(HELLO)) as state:
        assert [await fetch(state.client, b"abc") for _ in range(3)] == [(200, b"hello")] * 3
        assert state.connections == 1
        assert state.requests[0] == (
            b"POST /base/v1 HTTP/1.1\r\nhost: engine\r\nx-key: k\r\ncontent-type: application/json\r\n"
            b"content-length: 3\r\n\r\nabc"
        )


async def test_requests_at_once_have_a_connection_each(tmp_path: Path) -> None:
    together = asyncio.Barrier(5)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await together.wait()
        await says(HELLO)(reader, writer)

    async with server(tmp_path, act) as state:
        assert await asyncio.gather(*(fetch(state.client) for _ in range(5))) == [(200, b"hello")] * 5
        assert state.connections == 5


@on_both_ways
@pytest.mark.parametrize(
    "parts",
    [
        [OK + b"transfer-encoding: chunked\r\n\r\n5;name=value\r\nhello\r\n0\r\ntrailer: x\r\n\r\n"],
        [OK + b"Transfer-Encoding: gzip, Chunked\r\n\r\n2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"],
        [bytes([each]) for each in HELLO],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + HELLO],
        [b"HTTP/1.1 100 Continue\r\n\r\n", HELLO],
    ],
    ids=["chunked", "of two codings", "byte by byte", "after informational ones", "after one of them, in two reads"],
)
async def test_a_response_is_whole_however_it_is_framed_and_its_connection_is_kept(
    tmp_path: Path, parts: list[bytes], fetch: Fetch
) -> None:
    async with server(tmp_path, says(*parts)) as state:
        assert [await fetch(state.client) for _ in range(2)] == [(200, b"hello")] * 2
        assert state.connections == 1


@on_both_ways
@pytest.mark.parametrize(
    "response",
    [OK + b"\r\nhello", OK + b"connection: close\r\n\r\nhello", b"HTTP/1.0 200 OK\r\n\r\nhello"],
    ids=["nothing delimits it", "and it says so", "HTTP/1.0"],
)
async def test_a_body_may_end_with_its_connection_unless_that_is_reset(
    tmp_path: Path, response: bytes, fetch: Fetch
) -> None:
    async with server(tmp_path, says(response, close=True)) as state:
        assert [await fetch(state.client) for _ in range(2)] == [(200, b"hello")] * 2
        assert state.connections == 2
    async with server(tmp_path, says(response, abort=True)) as state:
        # whether the end or the reset is seen first is the system's affair; a body that is returned is whole
        with suppress(Cut):
            assert await fetch(state.client) == (200, b"hello")


@on_both_ways
@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"\x16\x03\x01 no HTTP\r\n\r\n"],
        [b"HTTP/1.1 200"],
        [OK + b"content-length: 5\r\n\r\nhell"],
        [OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"],
        [OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n"],
        [OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
        [OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"],
        [OK + b"content-length: -5\r\n\r\nhello"],
        [b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"],
        [OK + b"x: " + b"y" * http1_response.MAX_HEAD_BYTES + b"\r\n\r\n"],
        [OK + b"transfer-encoding: chunked\r\n\r\n1", *[b";x" * 1000] * 50],
    ],
    ids=[
        *("closed", "no HTTP", "half a status line", "half a body", "no last chunk", "no chunk size"),
        *("two framings", "two lengths", "a negative length", "an upgrade", "a huge header", "an endless extension"),
    ],
)
async def test_what_is_no_whole_response_is_cut_and_its_connection_closed(
    tmp_path: Path, parts: list[bytes], fetch: Fetch
) -> None:
    async with server(tmp_path, says(*parts, close=True), says(HELLO)) as state:
        with pytest.raises(Cut):
            await fetch(state.client)
        assert await fetch(state.client) == (200, b"hello")
        assert state.connections == 2
        assert len(state.requests) == 2, "what was sent is not sent again"


async def test_the_rest_of_a_body_is_taken_at_once_only_where_its_end_has_arrived(tmp_path: Path) -> None:
    goes_on = asyncio.Event()

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 5\r\n\r\nhe")
        await goes_on.wait()
        writer.write(b"llo")

    async with server(tmp_path, act, says(HELLO), says(OK + b"content-length: 0\r\n\r\n")) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        assert response.take_rest() is None
        chunks = response.chunks()
        assert await anext(chunks) == b"he"
        assert response.take_rest() is None
        goes_on.set()
        assert await anext(chunks) == b"llo"
        assert (response.take_rest(), await response.read()) == (b"", b"")
        response.close()
        assert response.take_rest() is None
        for body in (b"hello", b""):
            response = await state.client.request("POST", "/v1", b"", {})
            await asyncio.sleep(0)
            assert await response.read() == body
            response.close()
        assert state.connections == 1


async def test_what_arrived_before_the_cut_can_be_read(tmp_path: Path) -> None:
    async with server(tmp_path, says(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        chunks = response.chunks()
        assert await anext(chunks) == b"hello"
        with pytest.raises(Cut, match="invalid HTTP"):
            await anext(chunks)
        response.close()


async def test_what_takes_a_body_may_fail_and_nothing_is_given_to_it_afterwards(tmp_path: Path) -> None:
    pieces = [b"1\r\n%d\r\n" % number for number in range(6)]
    taken: list[bytes] = []

    def fails_at_the_third(data: bytes) -> bool:
        taken.append(data)
        if len(taken) == 3:
            raise ZeroDivisionError
        return True

    async with server(tmp_path, says(OK + b"transfer-encoding: chunked\r\n\r\n", *pieces), says(HELLO)) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        with pytest.raises(ZeroDivisionError):
            await response.pass_to(fails_at_the_third)
        taken_at_the_fault = len(taken)
        response.close()
        await until(lambda: state.open == 0)
        assert len(taken) == taken_at_the_fault == 3
        assert await fetch(state.client) == (200, b"hello")


async def test_a_body_that_is_passed_on_and_given_up_closes_its_connection(tmp_path: Path) -> None:
    taken: list[bytes] = []

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await until(lambda: bool(taken))
        writer.write(b"1\r\ny\r\n")
        await reader.read()  # returns when the client closes

    async with server(tmp_path, endless) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        passing = asyncio.create_task(response.pass_to(lambda data: taken.append(data) is None))
        await until(lambda: len(taken) == 2)
        assert state.client.awaiting == 1
        passing.cancel()
        with suppress(asyncio.CancelledError):
            await passing
        response.close()
        await until(lambda: state.open == 0)
        assert taken == [b"x", b"y"]


async def test_bytes_behind_a_response_never_begin_the_next(tmp_path: Path) -> None:
    forged = OK + b"content-length: 6\r\n\r\nforged"
    async with server(tmp_path, says(HELLO + forged), says(HELLO)) as state:
        with suppress(Cut):
            assert await fetch(state.client) == (200, b"hello")
        assert await fetch(state.client) == (200, b"hello")
        assert state.connections == 2
    async with server(tmp_path, says(HELLO, forged), says(HELLO)) as state:
        assert await fetch(state.client) == (200, b"hello")
        await until(lambda: state.open == 0)
        assert await fetch(state.client) == (200, b"hello")


async def test_a_response_that_is_closed_early_closes_its_connection(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await reader.read()  # returns when the client closes

    async with server(tmp_path, endless) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        assert await anext(response.chunks()) == b"x"
        response.close()
        response.close()
        await until(lambda: state.open == 0)


async def test_who_stops_waiting_for_a_response_closes_its_connection(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(tmp_path, silent) as state:
        request = asyncio.create_task(fetch(state.client))
        await until(lambda: len(state.requests) == 1)
        request.cancel()
        await until(lambda: state.open == 0)
        assert request.cancelled()


async def test_closing_cuts_what_waits_and_what_reads(tmp_path: Path) -> None:
    async def first_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\nx")  # a body that only the connection's end delimits: this is not its end
        await reader.read()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(tmp_path, first_byte, silent) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        reading = asyncio.create_task(response.read())
        waiting = asyncio.create_task(fetch(state.client))
        await until(lambda: len(state.requests) == 2)
        await state.client.close()
        for task in (reading, waiting):
            with pytest.raises(Cut):
                await task
        response.close()


async def test_a_reader_that_is_slow_holds_the_server_back(tmp_path: Path) -> None:
    sent = 0
    piece = b"x" * 65536

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"content-length: %d\r\n\r\n" % (len(piece) * 200))
        for _ in range(200):
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async with server(tmp_path, flood) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        before = -1
        while sent != before:  # until the server can send no more
            before = sent
            await asyncio.sleep(0.2)
        assert sent < len(piece) * 100
        assert await response.read() == piece * 200
        response.close()
        assert await fetch(state.client) == (200, piece * 200)
        assert state.connections == 1


async def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    async with server(tmp_path, says(HELLO), keep_alive_s=0.05) as state:
        assert await fetch(state.client) == (200, b"hello")
        await until(lambda: state.open == 0)
        assert await fetch(state.client) == (200, b"hello")
        assert state.connections == 2


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        await fetch(client_of("http://engine", str(tmp_path / "nobody.sock")))
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    listening.close()
    await listening.wait_closed()
    with pytest.raises(Unreachable):
        await fetch(client_of(f"http://127.0.0.1:{port}"))
    with pytest.raises(Unreachable, match="idna"):
        await fetch(client_of("http://a..b:1"))


async def test_over_tcp_the_host_is_the_urls(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(HELLO)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = client_of(f"http://127.0.0.1:{port}/base")
    assert await fetch(client, b"") == (200, b"hello")
    assert heads[0].startswith(b"POST /base/v1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % port)
    await client.close()
    listening.close()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1 HTTP/1.1\r\nx: y", {}),
        ("/v1 x", {}),
        ("/v1", {"x": "a\r\nb: c"}),
        ("/v1", {"x\n": "a"}),
        ("/v1", {"x": "\0"}),
    ],
)
async def test_nothing_smuggles_a_line_into_a_request(tmp_path: Path, path: str, headers: dict[str, str]) -> None:
    async with server(tmp_path, says(HELLO)) as state:
        with pytest.raises(ValueError, match=r"line break|control character"):
            await state.client.request("POST", path, b"", headers)
        assert state.connections == 0


async def test_a_request_that_cannot_be_encoded_loses_no_connection(tmp_path: Path) -> None:
    async with server(tmp_path, says(HELLO)) as state:
        assert await fetch(state.client) == (200, b"hello")
        with pytest.raises(ValueError, match="latin-1"):
            await state.client.request("POST", "/v1", b"", {"x": "\N{EURO SIGN}"})
        assert await fetch(state.client) == (200, b"hello")
        assert state.connections == 1


@pytest.mark.parametrize("url", ["/engine", "http://", "http://user:word@engine", "http://engine?x", "http://engine:0"])
def test_a_url_that_is_more_or_less_than_host_port_and_path_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://host:port"):
        client_of(url)


@pytest.mark.parametrize(
    "test",
    [
        test_a_request_has_its_headers_and_its_body_and_the_next_takes_the_same_connection,
        test_what_arrived_before_the_cut_can_be_read,
        test_bytes_behind_a_response_never_begin_the_next,
        test_a_response_that_is_closed_early_closes_its_connection,
        test_who_stops_waiting_for_a_response_closes_its_connection,
        test_closing_cuts_what_waits_and_what_reads,
        test_a_reader_that_is_slow_holds_the_server_back,
        test_an_idle_connection_is_closed_after_its_time,
        test_nobody_listens,
        test_over_tcp_the_host_is_the_urls,
    ],
)
def test_the_same_on_the_event_loop_that_the_server_runs_on(
    test: Callable[[Path], Coroutine[None, None, None]], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: uvloop.run(test(tmp_path))).result()
