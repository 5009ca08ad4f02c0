"""Requests that go on when the server stops: uvicorn cancels them once the time that they have is over."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from service.inference import exchange as exchange_module
from tests.unit.service.inference.fakes import Answer, World, chat_body, event_error, token, until

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat_body(stream=True),
    "/v1/responses": {"model": "voice", "input": "Hello", "stream": True},
    "/v1/messages": {**chat_body(stream=True), "max_tokens": 5},
}
STREAMS = {
    "/v1/chat/completions": token("A"),
    "/v1/responses": b"event: response.output_text.delta\n"
    b'data: {"sequence_number":4,"type":"response.output_text.delta","delta":"A"}\n\n',
    "/v1/messages": b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"A"}}\n\n',
}


async def test_a_request_that_a_shutdown_ends_is_accounted_for() -> None:
    world = World()
    world.engine.chunks = [asyncio.Event()]
    running = asyncio.create_task(world.chat())
    await until(lambda: world.engine.in_flight)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (world.records[0].outcome, world.records[0].code) == ("cut", "shutdown")
    assert world.engine.aborted.is_set()
    assert world.app.pipeline.in_flight == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_stream_that_a_shutdown_ends_says_so(path: str) -> None:
    """As uvicorn does it: it cancels what is still going on when the time to stop is over."""
    world, sent = World(), Answer()
    world.engine.chunks = [STREAMS[path], asyncio.Event()]
    running = asyncio.create_task(world.ask_in_parts(path, [orjson.dumps(BODIES[path])], answer=sent))
    await until(lambda: sent.parts)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert event_error(sent.body)["code"] == "shutdown"
    assert (world.records[0].outcome, world.records[0].code) == ("cut", "shutdown")


async def test_an_answer_that_a_shutdown_prevents_may_be_asked_for_again() -> None:
    world, sent = World(), Answer()
    world.engine.chunks = [asyncio.Event()]
    running = asyncio.create_task(world.ask_in_parts("/v1/chat/completions", [orjson.dumps(chat_body())], answer=sent))
    await until(lambda: world.engine.in_flight)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (sent.status, sent.error["code"], sent.headers["retry-after"]) == (503, "shutdown", "5")


async def test_a_client_that_does_not_read_holds_no_shutdown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "CUT_TIMEOUT_S", 0.01)
    world, blocked = World(), asyncio.Event()
    world.engine.chunks = [token("A"), asyncio.Event()]

    async def write(_answer: bytes) -> None:
        blocked.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(
        world.ask_in_parts("/v1/chat/completions", [orjson.dumps(chat_body(stream=True))], write=write)
    )
    await blocked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 60)
