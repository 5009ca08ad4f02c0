"""What the official clients make of citations: their own types, and all fields where these say they must be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import orjson
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.unit.service.grounding.fakes import ORDERS, RETURNS, Told, hook
from tests.unit.service.grounding.test_citing import (
    CHAT,
    FILE,
    NESTED,
    NOTE,
    PAGE,
    PIECES,
    URL,
    location,
    message_stream,
    response_events,
    response_object,
    response_stream,
)
from tests.unit.service.inference import test_anthropic
from tests.unit.service.inference.fakes import BASE, DIGESTS, KEY, World

GROUNDING = {"grounding": {"vector_store_ids": ["vs_a"]}}
TOOLS: list[Any] = [{"type": "file_search", "vector_store_ids": ["vs_a"]}]
QUESTION = "How long may I send things back, and what is the cat's name?"


def world(*chunks: bytes) -> World:
    made = World(hook=hook(Told(RETURNS, ORDERS, PAGE, NOTE)))
    made.engine.chunks = list(chunks)
    return made


@asynccontextmanager
async def openai_client(made: World) -> AsyncIterator[openai.AsyncOpenAI]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=made.app)) as http:
        yield openai.AsyncOpenAI(api_key=KEY, base_url="http://test/v1", http_client=http, max_retries=0)


@asynccontextmanager
async def anthropic_client(made: World) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=made.app)) as http:
        yield anthropic.AsyncAnthropic(auth_token=KEY, base_url="http://test", http_client=http, max_retries=0)


def dumped(values: Sequence[Any] | None) -> list[dict[str, Any]]:
    return [value.model_dump(exclude_unset=True) for value in values or ()]


async def test_chat_completions() -> None:
    answer = {"role": "assistant", "content": "".join(PIECES), "annotations": None}
    whole = {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": DIGESTS[3],
        "choices": [{"index": 0, "finish_reason": "stop", "message": answer}],
    }
    asked: dict[str, Any] = {"model": "voice", "messages": [{"role": "user", "content": QUESTION}]}
    async with openai_client(world(orjson.dumps(whole))) as client:
        raw = await client.chat.completions.with_raw_response.create(**asked, extra_body=GROUNDING)
    ChatCompletion.model_validate_json(raw.content)
    completion = raw.parse()
    assert dumped(completion.choices[0].message.annotations) == [NESTED]
    assert [each["used"] for each in completion.citations] == [True, False, True, True]  # type: ignore[attr-defined]


async def test_a_stream_of_chat_completions() -> None:
    asked: dict[str, Any] = {"model": "voice", "messages": [{"role": "user", "content": QUESTION}]}
    made = world(CHAT)
    async with openai_client(made) as client:
        stream = await client.chat.completions.create(**asked, stream=True, extra_body=GROUNDING)
        chunks = [chunk async for chunk in stream]
    [last] = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    annotations = last.choices[0].delta.annotations  # type: ignore[attr-defined]
    assert annotations == [NESTED]
    assert [each["used"] for each in last.citations] == [True, False, True, True]  # type: ignore[attr-defined]
    answer = await made.ask("/v1/chat/completions", {**asked, **GROUNDING, "stream": True})
    for sent in answer.body.split(b"\n\n")[:-2]:
        ChatCompletionChunk.model_validate_json(sent.removeprefix(b"data: "))
    # a client that puts the pieces together holds the whole to the schema
    message = {"role": "assistant", "content": "".join(PIECES), "refusal": None, "annotations": annotations}
    ChatCompletionMessage.model_validate(message)


async def test_responses() -> None:
    item = response_events()[-2][1]["item"]
    asked: dict[str, Any] = {"model": "voice", "input": QUESTION, "tools": TOOLS}
    async with openai_client(world(orjson.dumps(response_object([item])))) as client:
        raw = await client.responses.with_raw_response.create(**asked, include=["file_search_call.results"])
    response = raw.parse()
    Response.model_validate_json(raw.content)
    call, message = response.output
    assert call.type == "file_search_call"
    assert [(each.file_id, each.filename) for each in call.results or ()][:2] == [
        ("file-1", "returns.md"),
        ("file-2", "orders.csv"),
    ]
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert dumped(part.annotations) == [FILE, URL]
    assert response.tools[0].type == "file_search"


async def test_a_stream_of_responses() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    made = world(response_stream())
    async with (
        openai_client(made) as client,
        client.responses.stream(model="voice", input=QUESTION, tools=TOOLS) as stream,
    ):
        events = [event async for event in stream]
        final = await stream.get_final_response()
    answer = await made.ask("/v1/responses", {"model": "voice", "input": QUESTION, "tools": TOOLS, "stream": True})
    for sent in answer.body.split(b"\n\n")[:-1]:
        adapter.validate_json(sent.partition(b"data: ")[2])
    added = [event for event in events if event.type == "response.output_text.annotation.added"]
    assert dumped([event.annotation for event in added]) == [FILE, URL]
    kinds = [event.type for event in events]
    assert kinds.index("response.file_search_call.completed") < kinds.index("response.output_text.delta")
    assert final.output_text == "".join(PIECES)
    assert [item.type for item in final.output] == ["file_search_call", "message"]


async def test_messages() -> None:
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    block = {"type": "text", "text": "".join(PIECES), "citations": None}
    whole = test_anthropic.message(content=[block], **stop)
    asked: dict[str, Any] = {"model": "voice", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 9}
    async with anthropic_client(world(orjson.dumps(whole))) as client:
        raw = await client.messages.with_raw_response.create(**asked, extra_body=GROUNDING)
    Message.model_validate_json(await raw.read())
    [text] = (await raw.parse()).content
    assert text.type == "text"
    assert dumped(text.citations) == [location(0), location(2), location(3)]


async def test_a_stream_of_messages() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    made = world(message_stream(PIECES))
    asked: dict[str, Any] = {"model": "voice", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 9}
    async with anthropic_client(made) as client, client.messages.stream(**asked, extra_body=GROUNDING) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_message()
    [text] = final.content
    assert text.type == "text"
    assert dumped(text.citations) == [location(0), location(2), location(3)]
    assert [event.type for event in events].count("citation") == 3, "the client's own events"
    answer = await made.ask("/v1/messages", {**asked, **GROUNDING, "stream": True})
    for sent in answer.body.split(b"\n\n")[:-1]:
        if b"citations_delta" in sent:
            adapter.validate_json(sent.partition(b"data: ")[2])


async def test_an_answer_can_be_sent_back_with_its_citations() -> None:
    """As an application does that keeps the conversation."""
    question = {"role": "user", "content": "And what else?"}
    annotated = {"role": "assistant", "content": "45 days.", "annotations": [FILE]}
    cited = {"type": "text", "text": "45 days.", "citations": [location(0)]}
    text = {"type": "output_text", "text": "45 days.", "annotations": [FILE]}
    for path, body in (
        ("/v1/chat/completions", {"messages": [annotated, question]}),
        ("/v1/messages", {"messages": [{"role": "assistant", "content": [cited]}, question], "max_tokens": 9}),
        ("/v1/responses", {"input": [{"role": "assistant", "content": [text]}, question]}),
    ):
        made = world(orjson.dumps({"choices": [], "output": [], "content": []}))
        answer = await made.ask(path, {"model": BASE, **body, "grounding": False})
        assert answer.status == 200, answer.body
        assert b"returns.md" not in orjson.dumps(made.engine.last.body)
