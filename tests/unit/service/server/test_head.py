"""Nothing in a request's head may be read in two ways: it is refused before an app sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.unit.service.server.served import Echo, Served, served

CHUNKED = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
CHUNK = b"\r\n1\r\nx\r\n0\r\n"
SINGLE = (
    *("authorization", "x-api-key", "openai-project", "host", "content-type", "content-encoding", "idempotency-key"),
    *("x-request-id", "x-hatrack-sticky", "last-event-id", "traceparent", "range", "x-unheard-of"),
)


@pytest_asyncio.fixture(scope="module")
async def here() -> AsyncIterator[Served]:
    async with served(Echo()) as server:
        yield server


def get(*lines: bytes, host: bytes = b"host: x") -> bytes:
    return b"\r\n".join((b"GET /x HTTP/1.1", host, *lines, b"", b""))


async def test_a_header_that_has_one_value_comes_once(here: Served) -> None:
    for name in SINGLE:
        line = name.encode()
        for second in (line, line.upper()):
            host = b"accept: */*" if name == "host" else b"host: x"
            answer = await here.ask(get(line + b": a", b"accept: */*", second + b": a", host=host))
            assert answer.error() == (400, "repeated_header"), name
            assert name in answer.body.decode()


async def test_a_list_may_come_in_lines(here: Served) -> None:
    lists = [b"%s: a" % name for name in (b"accept", b"x-forwarded-for", b"via", b"anthropic-beta", b"tracestate")]
    assert (await here.ask(get(*lists, *lists))).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 1\r\n\r\nx",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\nx",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 0x1\r\n\r\nx",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\nx",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551617\r\n\r\nx",
        CHUNKED + b"content-length: 1\r\n" + CHUNK + b"\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n" + CHUNK + b"\r\n",
        CHUNKED + b"transfer-encoding: chunked\r\n" + CHUNK + b"\r\n",
        CHUNKED + b"transfer-encoding: identity\r\n" + CHUNK + b"\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n" + CHUNK + b"\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n" + CHUNK + b"\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: \x0bchunked\r\n" + CHUNK + b"\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n" + CHUNK + b"\r\n",
        b"POST /x HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n" + CHUNK + b"\r\n",
        CHUNKED + b"\r\n1\nx\n0\n\n",
        CHUNKED + b"\r\n-1\r\nx\r\n0\r\n\r\n",
        CHUNKED + b"\r\n1\r\nxyz\r\n0\r\n\r\n",
        get(b"a: b", b" c"),
        get(b"a: b", b"\tauthorization: c"),
        get(b" a: b"),
        get(b"a : b"),
        get(b": b"),
        get(b"a"),
        get(b"a\0: b"),
        get(b"a: b\0c"),
        get(b"a: b\rc"),
        get(b"a: b\x01c"),
        get(b"a: b\nauthorization: c"),
        b"GET /x HTTP/1.1\nhost: x\n\n",
        b"GET /x HTTP/1.1\r\n\r\n",
        b"GET /x\r\n\r\n",
        b"GET /x HTTP/1.2\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET @x HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://x HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 60,
    ],
)
async def test_what_is_not_quite_http_is_refused(here: Served, request_bytes: bytes) -> None:
    client, before = await here.connect(), here.server.server_state.total_requests
    answer = await client.ask(request_bytes)
    assert answer.error() == (400, "invalid_http")
    assert await client.closed() == b"", "the rest was read as another request"
    assert here.server.server_state.total_requests == before


@pytest.mark.parametrize("name", [b"authorization", b"host", b"x-request-id", b"x-a"])
async def test_a_chunked_body_has_no_trailers(here: Served, name: bytes) -> None:
    """They were added to the headers."""
    client = await here.connect()
    answer = await client.ask(CHUNKED + b"trailer: " + name + b"\r\n" + CHUNK + name + b": 1\r\n\r\n")
    assert answer.error() == (400, "trailers_not_allowed")
    assert await client.closed() == b""


async def test_a_trailer_behind_an_answer_ends_the_connection(here: Served) -> None:
    client = await here.connect()
    await client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    assert (await client.answer()).status == 200
    assert (await client.ask(b"1\r\nx\r\n0\r\na: b\r\n\r\n")).error() == (400, "trailers_not_allowed")
    assert await client.closed() == b""


async def test_a_chunked_body_is_read(here: Served) -> None:
    client = await here.connect()
    for _ in range(2):
        assert (await client.ask(CHUNKED + b"te: trailers\r\n" + CHUNK + b"\r\n")).status == 200
