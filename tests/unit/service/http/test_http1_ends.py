"""The data path's HTTP client where connections and requests end in the middle of things, on both event loops."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from tests.unit.service.http.raw_server import (
    HELLO,
    OK,
    Cut,
    Unreachable,
    client_of,
    fetch,
    on_both_loops,
    says,
    server,
)
from tests.unit.service.inference.fakes import until

HANGS_S = 60
"""What would hang with the fault that a test is about fails after it; nothing is measured against it."""


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # returns when the client closes


@on_both_loops
async def test_a_server_that_ends_its_side_and_reads_no_more_cuts_the_request(tmp_path: Path) -> None:
    path, over = str(tmp_path / "s.sock"), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write_eof()
        await over.wait()
        writer.close()

    listening = await asyncio.start_unix_server(serve, path)
    client = client_of("http://engine", path)
    async with asyncio.timeout(HANGS_S):
        with pytest.raises(Cut):
            await fetch(client, b"x" * 8_000_000)
    over.set()
    await client.close()
    listening.close()


@on_both_loops
async def test_closing_ends_requests_that_are_connecting(tmp_path: Path) -> None:
    heads = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heads
        heads += bool(await reader.read())
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    by_name = client_of(f"http://localhost:{listening.sockets[0].getsockname()[1]}")
    async with server(tmp_path, silent) as state, asyncio.timeout(HANGS_S):
        for client in (state.client, by_name):
            for turns in range(1, 12):
                request = asyncio.create_task(fetch(client))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await client.close()
                with pytest.raises((Unreachable, Cut)):
                    await request
    listening.close()


@on_both_loops
async def test_who_stops_waiting_at_any_moment_leaves_no_connection(tmp_path: Path) -> None:
    async with server(tmp_path, silent) as state, asyncio.timeout(HANGS_S):
        for turns in range(12):
            request = asyncio.create_task(fetch(state.client))
            for _ in range(turns):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await until(lambda: not state.client._open and state.open == 0)


@on_both_loops
async def test_a_connection_that_has_just_become_unusable_is_not_used(tmp_path: Path) -> None:
    async with server(tmp_path, says(HELLO)) as state:
        assert await fetch(state.client) == (200, b"hello")
        (connection,) = state.client._idle
        connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert await fetch(state.client) == (200, b"hello")
        assert state.connections == 2


@on_both_loops
async def test_a_response_that_is_closed_while_another_task_waits_for_it_takes_nothing_of_the_next(
    tmp_path: Path,
) -> None:
    go = asyncio.Event()

    async def in_two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 5\r\n\r\n")
        await go.wait()
        writer.write(b"first")

    async with server(tmp_path, in_two, says(HELLO)) as state, asyncio.timeout(HANGS_S):
        response = await state.client.request("POST", "/v1", b"", {})
        (connection,) = state.client._open
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        go.set()
        while not connection.complete:  # noqa: ASYNC110  the very next turn counts
            await asyncio.sleep(0)
        response.close()  # the reader is awake, but has not run yet
        assert await fetch(state.client) == (200, b"hello")
        assert await reading == b"first"


@on_both_loops
async def test_a_connection_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    async with server(tmp_path, says(OK + b"\r\nx"), says(HELLO)) as state:
        gc.disable()
        try:
            response = await state.client.request("POST", "/v1", b"", {})
            connection = weakref.ref(next(iter(state.client._open)))
            response.close()
            await until(lambda: connection() is None)
        finally:
            gc.enable()


async def test_only_what_the_server_owes_is_awaited(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n")
        await go.wait()
        writer.write(b"3\r\nllo\r\n0\r\n\r\n")

    async with server(tmp_path, act) as state:
        response = await state.client.request("POST", "/v1", b"", {})
        await until(lambda: state.client.awaiting == 0)  # "he" waits for its reader
        chunks = response.chunks()
        assert await anext(chunks) == b"he"
        assert state.client.awaiting == 1
        go.set()
        await until(lambda: state.client.awaiting == 0)
        assert b"".join([chunk async for chunk in chunks]) == b"llo"
        response.close()
        assert state.client.awaiting == 0
