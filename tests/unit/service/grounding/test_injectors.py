"""Where passages go in each dialect."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from service.grounding.injectors import CHAT_INJECTOR, MESSAGES_INJECTOR, RESPONSES_INJECTOR, PromptInjector
from service.grounding.template import FormattedPassages
from tests.unit.service.grounding.fakes import RETURNS

FORMATTED = FormattedPassages("Facts.\n\n", "", (RETURNS,), (RETURNS.text,), 3)


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
