"""The driver counts what came, and does not hide what did not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtests.gateway.driver import Load, Run, Seen
from tests.unit.loadtests.conftest import Engine, listening

SHORT = Load(port=0, connections=2, seconds=0.2, warmup_s=0.05)


async def ran(load: Load, enough: Callable[[Seen], bool]) -> Seen:
    """What a run has seen; a busy machine may get to too little in so short a time, and has longer then."""
    for times in (1, 5, 25):
        seen = await Run(replace(load, seconds=load.seconds * times))()
        if enough(seen):
            break
    return seen


def test_a_message_has_the_length_that_was_chosen() -> None:
    def message(load: Load) -> str:
        head, _, body = load.request().partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}" in head.decode()
        content: str = json.loads(body)["messages"][1]["content"]
        return content

    assert len(message(replace(SHORT, message_bytes=10_000))) == 10_000
    assert message(SHORT) == "Where is my parcel? It should have been here by now. " * 2


async def test_saturation_keeps_every_connection_busy(engine: Engine) -> None:
    seen = await ran(replace(SHORT, port=engine.port), lambda seen: len(seen.latency_s) > 2)
    assert seen.errors == 0
    assert seen.answers >= len(seen.latency_s) > 2
    assert len(seen.first_s) == len(seen.latency_s)
    assert all(0 < first <= whole for first, whole in zip(seen.first_s, seen.latency_s, strict=True))
    assert seen.tokens == 0
    assert seen.usage is not None
    assert seen.usage.own_s > 0


async def test_streams_are_counted_by_their_tokens(engine: Engine) -> None:
    seen = await Run(replace(SHORT, port=engine.port, tokens=8))()
    assert seen.errors == 0
    # a stream has an event for its role beside those of its tokens; those cut by the ends of the run count in part
    assert abs(seen.tokens - 9 * seen.answers) <= 9 * SHORT.connections


async def test_arrivals_at_a_rate_do_not_wait_for_answers(engine: Engine) -> None:
    engine.decoder.pace_s = 60.0
    load = replace(SHORT, port=engine.port, tokens=8, rate=200.0)
    seen = await ran(load, lambda seen: seen.unanswered > SHORT.connections)
    assert seen.answers == 0
    assert seen.unanswered > SHORT.connections


async def test_a_waiting_arrival_counts_from_when_it_came(engine: Engine) -> None:
    engine.decoder.pace_s = 0.02
    load = Load(port=engine.port, connections=1, seconds=0.5, warmup_s=0.0, tokens=2, rate=100.0)

    def overlaps(seen: Seen) -> bool:
        assert seen.usage is not None
        return sum(seen.latency_s) > 2 * seen.usage.wall_s

    # one connection takes 40 ms for each answer, requests come every 10 ms: the later, the longer the wait. Times that
    # count from the sending would lie one after another, and could not be more than the run together.
    assert overlaps(await ran(load, overlaps))


def answering(*pieces: bytes, close: bool = False) -> Callable[[], asyncio.Protocol]:
    class Wrong(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            for piece in pieces:
                self.transport.write(piece)
            if close:
                self.transport.close()

    return Wrong


@pytest.mark.parametrize(
    ("piece", "close", "words"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno", False, "503"),
        (b"HTTP/1.1 200 OK\r\n\r\nendless", False, "does not say where it ends"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", True, "closed in the middle"),
    ],
)
async def test_an_answer_that_is_none_is_an_error(piece: bytes, close: bool, words: str) -> None:
    async with listening(answering(piece, close=close)) as wrong:
        seen = await ran(replace(SHORT, port=wrong.port), lambda seen: seen.errors > 0)
    assert seen.errors > 0
    assert words in seen.first_error


async def test_a_stream_that_lacks_tokens_is_an_error() -> None:
    short = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\ndata: {"delta":1}\r\n0\r\n\r\n'
    async with listening(answering(short)) as wrong:
        seen = await ran(replace(SHORT, port=wrong.port, tokens=2), lambda seen: seen.errors > 0)
    assert seen.errors > 0


async def test_an_answer_in_pieces_is_one_answer() -> None:
    head, body = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r", b"\n\r\nfine"
    async with listening(answering(head, body)) as slow:
        seen = await ran(replace(SHORT, port=slow.port), lambda seen: seen.answers > 2)
    assert (seen.errors, seen.answers > 2) == (0, True)
