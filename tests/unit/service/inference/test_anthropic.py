"""`/v1/messages`: Anthropic's events and errors, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadGateway, EngineUnavailable, HatrackError, RateLimited
from service.inference.anthropic import MessagesRelay
from service.inference.relay import Renamer, TokenUsage
from service.registry.catalog import Target
from tests.unit.service.inference.fakes import DIGESTS, KEY, Answer, World

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
VOICE = Target("voice", DIGESTS[3], adapter="voice", version=3, digest=DIGESTS[3])
TRICKY = f'event: message_stop\n\nevent: error\n"model":"{DIGESTS[3]}" "usage":{{"output_tokens":99}}'
USER = {"role": "user", "content": "Hello"}


def event(kind: str, **payload: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **payload}) + b"\n\n"


def message(model: str = DIGESTS[3], identifier: str = "chatcmpl-1", **more: Any) -> dict[str, Any]:
    counts = {"input_tokens": 20, "output_tokens": 0, "cache_read_input_tokens": 11}
    return {
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": model,
        "usage": counts,
    } | more


def delta(text: str) -> bytes:
    return event("content_block_delta", delta={"type": "text_delta", "text": text}, index=0)


def stream(**start: Any) -> list[bytes]:
    counts = {"input_tokens": 20, "output_tokens": 5, "cache_read_input_tokens": 11}
    return [
        event("message_start", message=message(**start)),
        event("content_block_start", content_block={"type": "text", "text": ""}, index=0),
        delta("Ahoy"),
        delta(TRICKY),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=counts),
        event("message_stop"),
    ]


def shown() -> list[bytes]:
    """The stream as the client gets it."""
    first, *rest = stream(model="voice", identifier="msg_1")
    return [first, PING, *rest]


@given(cuts=st.lists(st.integers(0, sum(map(len, stream()))), max_size=12))
def test_pieces_cut_anywhere_give_the_same_events(cuts: list[int]) -> None:
    whole = b"".join(stream())
    found = MessagesRelay(Renamer(VOICE))
    out = b"".join(found.feed(whole[a:b]) for a, b in pairwise([0, *sorted(cuts), len(whole)]))
    assert out == b"".join(shown())
    assert found.done
    assert found.error is None
    assert found.counted() == TokenUsage(31, 5, 11)


def test_a_stream_that_was_cut_knows_its_prompt_and_counts_its_deltas() -> None:
    found = MessagesRelay(Renamer(VOICE))
    assert found.counted() is None
    assert found.feed(stream()[0]) == b"", "the start waits for what follows"
    for piece in stream()[1:4]:
        found.feed(piece)
    assert found.counted() == TokenUsage(31, 2, 11, exact=False)
    assert not found.done


async def ask(world: World, *, path: str = PATH, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    body = {"model": "voice", "messages": [USER], **({} if path == COUNT else {"max_tokens": 9}), **fields}
    return await world.ask(path, body, headers=headers)


def answering() -> World:
    world = World()
    counts = {"input_tokens": 20, "output_tokens": 5}
    world.engine.chunks = [orjson.dumps(message(usage=counts))]
    return world


async def test_an_answer_is_renamed_and_counted() -> None:
    world = answering()
    answer = await ask(world, headers={"x-request-id": "mine", "anthropic-version": "2023-06-01"})
    assert (answer.json()["model"], answer.json()["id"]) == ("voice", "msg_1")
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-hatrack-adapter"] == "voice@3"
    assert world.records[0].usage == TokenUsage(20, 5)
    assert world.engine.last.path == PATH
    assert len(world.engine.last.body["cache_salt"]) == 32


async def test_a_stream_over_http_and_one_that_breaks() -> None:
    world = World()
    world.engine.chunks = [*stream()]
    answer = await ask(world, stream=True)
    assert answer.body == b"".join(shown())
    assert "stream_options" not in world.engine.last.body
    assert world.records[0].usage == TokenUsage(31, 5, 11)
    broken = b'event: error\ndata: {"error": {"message": "m", "type": "adapter_not_finite", "code": 500}}\n\n'
    world.engine.chunks = [*stream()[:3], broken]
    answer = await ask(world, stream=True)
    kind, data = answer.parts[-1].decode().split("\n")[:2]
    assert kind == "event: error"
    told = orjson.loads(data.removeprefix("data: "))
    assert told["type"] == "error"
    assert (told["error"]["type"], told["error"]["code"]) == ("api_error", "adapter_not_finite")
    assert told["request_id"] == answer.headers["request-id"]
    assert world.records[1].usage == TokenUsage(31, 1, 11, exact=False)
    world.engine.chunks = [stream()[0], broken]
    answer = await ask(world, stream=True)
    assert (answer.status, answer.error["type"]) == (500, "api_error")


async def test_settings_of_the_version_fill_what_the_request_leaves_open() -> None:
    world = answering()
    await ask(world)
    sent = world.engine.last.body
    assert (sent["system"], sent["temperature"], sent["max_tokens"]) == ("You are a pirate.", 0.25, 9)
    await ask(world, system="Mine.", temperature=1)
    sent = world.engine.last.body
    assert (sent["system"], sent["temperature"]) == ("Mine.", 1)
    await ask(world, messages=[{"role": "system", "content": "Mine."}, USER])
    assert "system" not in world.engine.last.body


async def test_tokens_are_counted_with_the_versions_prompt_and_charged() -> None:
    world = World()
    world.engine.chunks = [b'{"input_tokens":16}']
    answer = await ask(world, path=COUNT)
    assert answer.json() == {"input_tokens": 16}
    sent = world.engine.last.body
    assert sent["system"] == "You are a pirate."
    assert sent.keys() == {"model", "messages", "system"}
    assert world.records[0].tokens == 16
    assert (await ask(world, path=COUNT, max_tokens=3)).status == 400


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"headers": {"authorization": "Bearer wrong"}}, 401, "authentication_error"),
        ({"model": "nobody"}, 404, "not_found_error"),
        ({"model": "unborn"}, 404, "not_found_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"no_such_field": 1}, 400, "invalid_request_error"),
        ({"headers": {"content-type": "text/plain"}}, 415, "invalid_request_error"),
        ({"system": "x" * 9000}, 413, "request_too_large"),
    ],
)
async def test_errors_have_anthropics_shape(change: dict[str, Any], status: int, kind: str) -> None:
    world = World(max_body_mib=0.008)
    answer = await ask(world, **change)
    assert answer.status == status
    told = answer.json()
    assert (told["type"], told["error"]["type"]) == ("error", kind)
    assert told["error"]["message"]
    assert told["error"]["code"]
    assert told["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RateLimited("slow down"), 429, "rate_limit_error"),
        (EngineUnavailable("there is none"), 503, "overloaded_error"),
        (BadGateway("odd"), 502, "api_error"),
    ],
)
async def test_errors_on_the_way_have_it_too(error: HatrackError, status: int, kind: str) -> None:
    world = World()
    world.engine.down = error
    answer = await ask(world)
    assert (answer.status, answer.error["type"]) == (status, kind)


async def test_other_methods_and_paths_answer_in_anthropics_shape() -> None:
    world = World()
    wrong = await world.ask(PATH, method="GET")
    assert (wrong.status, wrong.headers["allow"], wrong.error["type"]) == (405, "POST", "invalid_request_error")
    path = "/v1/messages/batches"
    assert world.app.handles({"type": "http", "path": path})
    missing = await world.ask(path, {})
    assert (missing.status, missing.error["type"]) == (404, "not_found_error")


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}, USER]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER, {"role": "assistant", "content": "The answer is"}]}, "messages.1.role"),
        (said({"type": "image", "source": {"type": "url", "url": "https://x"}}), "messages.0.content.0.source.type"),
        (said({"type": "document", "source": {}}), "messages.0.content.0.type"),
        (said({"type": "tool_use", "id": "t", "name": "f", "input": {}}), "messages.0.content.0.type"),
        (said({"type": "tool_result", "tool_use_id": "t"}, role="assistant"), "messages.0.content.0.type"),
        (said({"type": "tool_addition"}, role="system"), "messages.0.content.0.type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"mcp_servers": [{"url": "https://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"metadata": {"user_id": "x" * 513}}, "metadata.user_id"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"system": [{"type": "image", "source": {}}]}, "system.0.type"),
    ],
)
async def test_what_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    world = World()
    answer = await ask(world, **fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert world.engine.asked == []


async def test_what_asks_for_nothing_here_is_dropped() -> None:
    world = answering()
    mark = {"type": "ephemeral"}
    await ask(
        world,
        headers={"x-api-key": KEY},
        system=[{"type": "text", "text": "S", "cache_control": mark}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?", "citations": None}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
        ],
        tools=[{"name": "f", "input_schema": {"type": "object"}, "type": "custom", "cache_control": mark}],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        metadata={"user_id": "u"},
        service_tier="auto",
        cache_control=mark,
        stop_sequences=["x"],
        top_k=5,
    )
    sent = world.engine.last.body
    assert sent["system"] == [{"type": "text", "text": "S"}]
    assert sent["tools"] == [{"name": "f", "input_schema": {"type": "object"}}]
    assert sent["messages"][1]["content"] == [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]
    assert not sent.keys() & {"metadata", "service_tier", "cache_control"}
    assert (sent["stop_sequences"], sent["top_k"]) == (["x"], 5)
