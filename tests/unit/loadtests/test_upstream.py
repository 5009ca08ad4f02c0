"""The fake engine says what vLLM says, whatever pieces the request comes in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.unit.loadtests.conftest import Engine

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "ab" * 32, "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


async def events(engine: Engine, **more: Any) -> list[str]:
    async with (
        httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=60) as client,
        client.stream("POST", CHAT, json={**ASKED, "stream": True, **more}) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") async for line in response.aiter_lines() if line]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.01)


async def test_an_answer_names_the_model_that_was_asked(engine: Engine) -> None:
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=60) as client:
        first = (await client.post(CHAT, json=ASKED)).json()
        second = (await client.post(CHAT, json={**ASKED, "model": "base"})).json()
    assert (first["model"], second["model"]) == ("ab" * 32, "base")
    assert first["choices"][0]["message"]["content"]
    assert first["usage"]["total_tokens"] == first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]


async def test_a_stream_has_a_role_then_the_tokens_asked_for_then_done(engine: Engine) -> None:
    seen = await events(engine)
    assert seen[-1] == "[DONE]"
    parsed = [json.loads(event) for event in seen[:-1]]
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(parsed) == 1 + 5
    assert parsed[-1]["choices"][0]["finish_reason"] == "length"
    assert {event["model"] for event in parsed} == {"ab" * 32}


@pytest.mark.parametrize("wanted", [True, False])
async def test_usage_comes_only_where_it_is_asked_for(engine: Engine, wanted: bool) -> None:
    seen = await events(engine, stream_options={"include_usage": wanted})
    last = json.loads(seen[-2])
    assert ("usage" in last) is wanted
    assert last["choices"] == [] if wanted else last["choices"]


async def test_paced_streams_end_too(engine: Engine) -> None:
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=60) as client:
        await client.put("/pace/1")
    assert engine.decoder.pace_s == 0.001
    found = await asyncio.gather(*(events(engine) for _ in range(3)))
    assert [len(seen) for seen in found] == [7, 7, 7]


async def test_a_request_in_pieces_and_two_in_one_piece(engine: Engine) -> None:
    body = json.dumps(ASKED).encode()
    request = f"POST {CHAT} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    for at in (0, 10, 40, len(request) - 3):
        writer.write(request[at : {0: 10, 10: 40, 40: len(request) - 3}.get(at)])
        await writer.drain()
        await asyncio.sleep(0.01)
    writer.write(request + request)
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length))["object"] == "chat.completion"
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_is_forgotten(engine: Engine) -> None:
    engine.decoder.pace_s = 0.01
    _, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    body = json.dumps({**ASKED, "stream": True, "max_tokens": 4000}).encode()
    writer.write(f"POST {CHAT} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await until(lambda: engine.decoder.streams == 1)
    writer.close()
    await until(lambda: engine.decoder.streams == 0)


async def test_no_more_streams_decode_than_there_are_places(engine: Engine) -> None:
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=60) as client:
        await client.put("/sequences/2")
        await client.put("/pace/60000")
        asked = [asyncio.create_task(events(engine)) for _ in range(5)]
        await until(lambda: engine.decoder.streams == 5)
        engine.decoder.pace_s = 0.001
        engine.decoder._step()
        assert (await client.get("/load")).json() == {"streams": 5, "waiting": 3}
        assert [len(seen) for seen in await asyncio.gather(*asked)] == [7] * 5
        assert (await client.get("/load")).json() == {"streams": 0, "waiting": 0}


async def test_a_client_that_leaves_while_it_waits_is_forgotten(engine: Engine) -> None:
    engine.decoder.max_sequences, engine.decoder.pace_s = 1, 60.0
    asked = [asyncio.create_task(events(engine)) for _ in range(2)]
    await until(lambda: engine.decoder.streams == 2)
    for task in asked:
        task.cancel()
    await until(lambda: engine.decoder.streams == 0)


async def test_log_probabilities_differ_under_an_adapter_and_repeat(engine: Engine) -> None:
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=60) as client:

        async def ask(model: str) -> list[dict[str, Any] | None]:
            asked = {"model": model, "prompt": ["The ferry left an hour late"], "prompt_logprobs": 0}
            answer = (await client.post("/v1/completions", json=asked)).json()
            return answer["choices"][0]["prompt_logprobs"]

        assert await ask("base") == await ask("base")
        assert await ask("base") != await ask("ab" * 32)
        assert await ask("cd" * 32) != await ask("ab" * 32)


async def test_the_plugins_report_is_what_it_was_given(engine: Engine) -> None:
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=60) as client:
        assert (await client.get("/hatrack/plugin?loaded=1")).json()["names"] == ["base"]
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "base"
        assert (await client.get("/nothing")).status_code == 404
