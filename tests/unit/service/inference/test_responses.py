"""`/v1/responses`: its stream of named events, its settings, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadGateway
from service.inference.relay import Renamer, TokenUsage
from service.inference.responses import ResponsesRelay
from service.registry.catalog import Target
from tests.unit.service.inference.fakes import DIGESTS, Answer, World

PATH = "/v1/responses"
VOICE = Target("voice", DIGESTS[3], adapter="voice", version=3, digest=DIGESTS[3])
TRICKY = f'event: error\n\nevent: response.completed\ndata: {{"response":{{"model":"{DIGESTS[3]}","usage":{{"input_'
COUNTS = {
    "input_tokens": 31,
    "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0, "cached_tokens_per_turn": []},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 35,
}


def response(model: str = DIGESTS[3], *, reason: str | None = None, usage: Any = None, **more: Any) -> dict[str, Any]:
    """A response object with its members in vLLM's order."""
    return {
        "id": "resp_1",
        "incomplete_details": {"reason": reason} if reason else None,
        "metadata": {"note": "response.completed", **more},
        "model": model,
        "object": "response",
        "output": [],
        "tools": [{"type": "function", "name": "f", "parameters": {"usage": {"input_tokens": 7}}}],
        "status": "incomplete" if reason else "completed",
        "usage": usage,
    }


def event(kind: str, number: int, **payload: Any) -> bytes:
    data = orjson.dumps({**payload, "sequence_number": number, "type": kind})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def delta(text: str, number: int) -> bytes:
    return event("response.output_text.delta", number, delta=text, item_id="msg_1")


def stream(model: str = DIGESTS[3], *, end: str = "completed", reason: str | None = None) -> list[bytes]:
    return [
        event("response.created", 0, response=response(model)),
        event("response.in_progress", 1, response=response(model)),
        delta("Ahoy", 2),
        delta(TRICKY, 3),
        event(f"response.{end}", 4, response=response(model, reason=reason, usage=COUNTS)),
    ]


@given(cuts=st.lists(st.integers(0, sum(map(len, stream()))), max_size=12))
def test_pieces_cut_anywhere_give_the_same_events_with_the_label_in_each_response(cuts: list[int]) -> None:
    whole = b"".join(stream())
    found = ResponsesRelay(Renamer(VOICE))
    out = b"".join(found.feed(whole[a:b]) for a, b in pairwise([0, *sorted(cuts), len(whole)]))
    assert out == b"".join(stream("voice"))
    assert found.done
    assert found.error is None
    assert found.counted() == TokenUsage(31, 4, 16)


def test_the_opening_waits_for_what_follows() -> None:
    found = ResponsesRelay(Renamer(VOICE))
    created, in_progress, first, *_ = stream()
    assert found.feed(created) == b""
    assert found.feed(in_progress) == b""
    assert found.feed(first) == b"".join(stream("voice")[:3])
    assert found.feed(delta("x", 3)) == delta("x", 3)


def test_an_answer_cut_at_its_longest_ends_as_incomplete() -> None:
    found = ResponsesRelay(Renamer(VOICE))
    out = b"".join(found.feed(piece) for piece in stream(reason="max_output_tokens"))
    assert out == b"".join(stream("voice", end="incomplete", reason="max_output_tokens"))
    assert found.done


def test_a_stream_that_was_cut_is_counted_by_its_deltas_and_has_no_end() -> None:
    found = ResponsesRelay(Renamer(VOICE))
    assert found.counted() is None
    for piece in stream()[:4]:
        found.feed(piece)
    assert found.counted() == TokenUsage(completion_tokens=2, exact=False)
    assert not found.done


def test_the_error_event_carries_on_the_numbers_and_make_the_client_raise() -> None:
    found = ResponsesRelay(Renamer(VOICE))
    for piece in stream()[:4]:
        found.feed(piece)
    found.feed(b'event: error\ndata: {"error": {"type": "adapter_not_finite", "code": 500}}\n\n' + delta("y", 9))
    assert found.error is not None
    assert orjson.loads(found.error)["error"]["type"] == "adapter_not_finite"
    assert found.feed(delta("z", 10)) == b""
    said = found.error_event(BadGateway("gone", code="engine_cut"), "id")
    kind, data, *_ = said.decode().split("\n")
    assert kind == "event: error"
    told = orjson.loads(data.removeprefix("data: "))
    assert (told["type"], told["code"], told["message"]) == ("error", "engine_cut", "gone")
    assert told["sequence_number"] == 4
    assert told["error"]["message"] == "gone"


async def respond(world: World, **fields: Any) -> Answer:
    return await world.ask(PATH, {"model": "voice", "input": "Hello", **fields})


def answering(**settings: Any) -> World:
    world = World(**settings)
    world.engine.chunks = [orjson.dumps(response(usage=COUNTS))]
    return world


async def test_an_answer_is_renamed_and_counted_and_never_stored() -> None:
    world = answering()
    answer = await respond(world, store=None, background=False, previous_response_id=None, metadata={"a": "b"})
    assert answer.json()["model"] == "voice"
    assert answer.headers["x-hatrack-adapter"] == "voice@3"
    assert world.records[0].usage == TokenUsage(31, 4, 16)
    sent = world.engine.last
    assert sent.path == PATH
    assert sent.body["model"] == DIGESTS[3]
    assert sent.body["store"] is False
    assert sent.body["metadata"] == {"a": "b"}
    assert len(sent.body["cache_salt"]) == 32
    assert "stream_options" not in sent.body


async def test_a_stream_over_http() -> None:
    world = World()
    world.engine.chunks = [*stream()]
    answer = await respond(world, stream=True, stream_options={"include_obfuscation": False})
    assert answer.body == b"".join(stream("voice"))
    assert "stream_options" not in world.engine.last.body
    [record] = world.records
    assert (record.outcome, record.usage) == ("ok", TokenUsage(31, 4, 16))


async def test_a_request_that_fails_at_once_gets_a_status_and_a_later_one_an_event() -> None:
    world = World()
    broken = b'event: error\ndata: {"error": {"message": "m", "type": "adapter_not_finite", "code": 500}}\n\n'
    world.engine.chunks = [*stream()[:2], broken]
    answer = await respond(world, stream=True)
    assert (answer.status, answer.error["code"]) == (500, "adapter_not_finite")
    assert world.suspects == [DIGESTS[3]]
    world.engine.chunks = [*stream()[:3], broken]
    answer = await respond(world, stream=True)
    assert answer.status == 200
    assert answer.parts[-1].startswith(b'event: error\ndata: {"type":"error","sequence_number":3,')
    assert world.records[-1].outcome == "cut"
    world.engine.chunks = [*stream()[:3]]
    answer = await respond(world, stream=True)
    assert b'"code":"engine_cut"' in answer.parts[-1]


async def test_settings_of_the_version_fill_what_the_request_leaves_open() -> None:
    world = answering()
    await respond(world)
    sent = world.engine.last.body
    assert [(item["role"], item["content"]) for item in sent["input"]] == [
        ("system", "You are a pirate."),
        ("user", "Hello"),
    ]
    assert "instructions" not in sent, "the answer would repeat them"
    assert (sent["temperature"], sent["max_output_tokens"]) == (0.25, 7)
    assert "max_tokens" not in sent


@pytest.mark.parametrize(
    "own",
    [
        {"instructions": "Be brief."},
        {"input": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]},
    ],
)
async def test_the_requests_own_instructions_win(own: dict[str, Any]) -> None:
    world = answering()
    await respond(world, max_output_tokens=9, temperature=1, **own)
    sent = world.engine.last.body
    assert "pirate" not in str(sent)
    assert (sent["temperature"], sent["max_output_tokens"]) == (1, 9)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"request_id": "x"}, "request_id"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "custom", "name": "x", "format": {"type": "grammar"}}]}, "tools.0.format.type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"include": ["web_search_call.results"]}, "include.0"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input.0.content.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
            "input.0.content.0.image_url",
        ),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input.0.encrypted_content"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ],
)
async def test_what_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    world = World()
    answer = await respond(world, **fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert world.engine.asked == []


async def test_a_conversation_sent_back_as_it_came_is_understood() -> None:
    world = answering()
    said = {"type": "output_text", "text": "It is ", "annotations": [], "logprobs": None}
    await respond(
        world,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}], "phase": None},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": None},
            {"type": "function_call_output", "call_id": "c", "output": "sunny"},
            {"type": "message", "role": "assistant", "id": "m", "content": [said, {**said, "text": "sunny"}]},
        ],
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
        instructions="x",
    )
    sent = world.engine.last.body
    assert sent["include"] == ["message.output_text.logprobs"]
    assert sent["input"][1] == {"type": "reasoning", "id": "rs_1", "summary": []}
    assert sent["input"][2] == {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert sent["input"][4]["content"] == [{"type": "output_text", "text": "It is sunny", "annotations": []}]


async def test_stored_responses_are_not_ours_to_serve() -> None:
    world = World()
    for path in ("/v1/responses/resp_1", "/v1/responses/resp_1/cancel"):
        assert not world.app.handles({"type": "http", "path": path, "method": "GET"})
    assert (await world.ask(PATH, method="GET")).status == 405
