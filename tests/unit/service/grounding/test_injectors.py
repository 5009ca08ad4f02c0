"""Where passages and citations go in each dialect."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.grounding.injectors import (
    CHAT_INJECTOR,
    MESSAGES_INJECTOR,
    RESPONSES_INJECTOR,
    CitationRelay,
    PromptInjector,
)
from service.grounding.template import FormattedPassages
from service.inference.anthropic import MessagesRelay
from service.inference.relay import ChatRelay, Renamer
from service.inference.responses import ResponsesRelay
from tests.unit.service.grounding.fakes import RETURNS, Told, hook
from tests.unit.service.inference import test_anthropic, test_responses
from tests.unit.service.inference.fakes import DONE, World, event, token, usage_event

FORMATTED = FormattedPassages("Facts.\n\n", "", (RETURNS,), 3)
CITATIONS = b'[{"id":"p-1","text":"\\"finish_reason\\":\\"stop\\" }"}]'
CHAT_STREAM = [
    token('a "finish_reason":"x" }'),
    event(id="c1", model="m", choices=[{"index": 0, "delta": {"content": "b"}, "finish_reason": None}]),
    event(id="c1", model="m", choices=[{"index": 0, "delta": {}, "finish_reason": "length"}]),
    usage_event(),
    DONE,
]


def user_message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("injector", "body", "question", "after"),
    [
        (
            CHAT_INJECTOR,
            {"messages": [user_message("old"), {"role": "assistant", "content": "x"}, user_message("new")]},
            "new",
            {
                "messages": [
                    user_message("old"),
                    {"role": "assistant", "content": "x"},
                    user_message("Facts.\n\nnew"),
                ]
            },
        ),
        (
            CHAT_INJECTOR,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
            "a",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "Facts.\n\n"},
                            {"type": "text", "text": "a"},
                            {"type": "image_url"},
                        ],
                    }
                ]
            },
        ),
        (
            CHAT_INJECTOR,
            {"messages": [user_message("q"), {"role": "tool", "tool_call_id": "t", "content": "result"}]},
            "q",
            {
                "messages": [
                    user_message("Facts.\n\nq"),
                    {"role": "tool", "tool_call_id": "t", "content": "result"},
                ]
            },
        ),
        (
            RESPONSES_INJECTOR,
            {"input": "hello", "instructions": "i"},
            "hello",
            {"input": [{"type": "message", "role": "user", "content": "Facts.\n\nhello"}], "instructions": "i"},
        ),
        (
            RESPONSES_INJECTOR,
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
                    {"type": "function_call_output", "call_id": "c", "output": "x"},
                ]
            },
            "one",
            {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "Facts.\n\n"},
                            {"type": "input_text", "text": "one"},
                        ],
                    },
                    {"type": "function_call_output", "call_id": "c", "output": "x"},
                ]
            },
        ),
        (
            MESSAGES_INJECTOR,
            {
                "system": "s",
                "messages": [
                    user_message("q"),
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]},
                ],
            },
            "q",
            {
                "system": "s",
                "messages": [
                    user_message("Facts.\n\nq"),
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]},
                ],
            },
        ),
    ],
)
def test_passages_go_into_the_last_message_with_text(
    injector: PromptInjector, body: dict[str, Any], question: str, after: dict[str, Any]
) -> None:
    before = orjson.dumps(body)
    shown = orjson.loads(before)
    assert injector.question(body) == question
    injector.inject(shown, FORMATTED)
    assert shown == after
    assert orjson.dumps(body) == before


def test_the_conversation_has_its_system_prompt_wherever_that_stands() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert CHAT_INJECTOR.conversation({"messages": messages}) == messages
    assert RESPONSES_INJECTOR.conversation({"instructions": "s", "input": "q"}) == messages
    blocks = [{"type": "text", "text": "s"}]
    assert MESSAGES_INJECTOR.conversation({"system": blocks, "messages": [user_message("q")]}) == messages


def chat_relay() -> CitationRelay:
    return CitationRelay(ChatRelay(Renamer(test_responses.VOICE), show_usage=True), CHAT_INJECTOR, CITATIONS)


def pieces(relay: CitationRelay, whole: bytes, cuts: list[int]) -> list[bytes]:
    out = b"".join(relay.feed(whole[a:b]) for a, b in pairwise([0, *sorted(cuts), len(whole)]))
    assert out.endswith(b"\n\n")
    return out.split(b"\n\n")[:-1]


def data_of(event: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = orjson.loads(event.partition(b"data: ")[2])
    return parsed


@given(cuts=st.lists(st.integers(0, sum(map(len, CHAT_STREAM))), max_size=12))
def test_chat_is_cited_where_it_finishes(cuts: list[int]) -> None:
    relay = chat_relay()
    events = pieces(relay, b"".join(CHAT_STREAM), cuts)
    assert relay.done
    assert relay.counted() is not None
    assert ["citations" in data_of(event) for event in events[:-1]] == [False, False, True, False]
    assert data_of(events[2])["citations"] == orjson.loads(CITATIONS)


@given(
    cuts=st.lists(st.integers(0, sum(map(len, test_responses.stream()))), max_size=12),
    reason=st.sampled_from([None, "max_output_tokens"]),
)
def test_responses_are_cited_in_the_last_response_object(cuts: list[int], reason: str | None) -> None:
    inner = ResponsesRelay(Renamer(test_responses.VOICE))
    events = pieces(
        CitationRelay(inner, RESPONSES_INJECTOR, CITATIONS), b"".join(test_responses.stream(reason=reason)), cuts
    )
    last = data_of(events[-1])
    assert last["response"].pop("citations") == orjson.loads(CITATIONS)
    plain = ResponsesRelay(Renamer(test_responses.VOICE)).feed(b"".join(test_responses.stream(reason=reason)))
    assert [data_of(event) for event in events[:-1]] == [data_of(event) for event in plain.split(b"\n\n")[:-2]]
    assert last == data_of(plain.split(b"\n\n")[-2])


@given(cuts=st.lists(st.integers(0, sum(map(len, test_anthropic.stream()))), max_size=12))
def test_messages_are_cited_beside_the_stop_reason(cuts: list[int]) -> None:
    inner = MessagesRelay(Renamer(test_anthropic.VOICE))
    events = pieces(CitationRelay(inner, MESSAGES_INJECTOR, CITATIONS), b"".join(test_anthropic.stream()), cuts)
    assert ["citations" in data_of(event) for event in events] == [b"event: message_delta" in event for event in events]


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/responses", {"input": "q"}, test_responses.response("3" * 64)),
        ("/v1/messages", {"messages": [user_message("q")], "max_tokens": 9}, test_anthropic.message("3" * 64)),
    ],
)
async def test_whole_answers_of_the_other_doors(path: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
    made = World(hook=hook(Told(RETURNS)))
    made.engine.chunks = [orjson.dumps(answer)]
    got = await made.ask(path, {"model": "voice", **body, "grounding": {"vector_store_ids": ["vs_a"]}})
    assert got.status == 200
    assert [event["id"] for event in got.json()["citations"]] == ["p-1"]
    assert got.headers["x-hatrack-citations"] == "p-1"
    assert b"returns.md" in orjson.dumps(made.engine.last.body)


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,PICTURE"}}


@pytest.mark.parametrize(
    ("injector", "body"),
    [
        (
            CHAT_INJECTOR,
            {
                "messages": [
                    {"role": "system", "content": "one"},
                    {"role": "user", "content": [{"type": "text", "text": "two"}, PICTURE]},
                    {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "three"}}]},
                    {"role": "tool", "tool_call_id": "x", "content": "four"},
                ],
                "tools": [{"type": "function", "function": {"name": "five"}}],
            },
        ),
        (
            RESPONSES_INJECTOR,
            {
                "instructions": "one",
                "input": [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "two"}]},
                    {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "PICTURE"}]},
                    {"type": "function_call", "call_id": "x", "name": "f", "arguments": "three"},
                    {"type": "function_call_output", "call_id": "x", "output": "four"},
                    {
                        "type": "custom_tool_call_output",
                        "call_id": "x",
                        "output": [{"type": "input_text", "text": "6"}],
                    },
                ],
                "tools": [{"type": "function", "name": "five"}],
            },
        ),
        (
            MESSAGES_INJECTOR,
            {
                "system": [{"type": "text", "text": "one"}],
                "messages": [
                    {"role": "user", "content": "two"},
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "input": {"three": [True]}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "four"}]},
                    {"role": "user", "content": [{"type": "image", "source": {"data": "PICTURE"}}]},
                ],
                "tools": [{"name": "five", "input_schema": {}}],
            },
        ),
    ],
)
def test_a_prompt_is_all_that_is_said_and_no_picture(injector: PromptInjector, body: dict[str, Any]) -> None:
    messages = " ".join(injector.prompt(body))
    assert all(word in messages for word in ("one", "two", "three", "four", "five"))
    assert "PICTURE" not in messages
