"""The Responses and Messages routes of the real engine name a contained fault, as its other routes do."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
import pytest_asyncio

from tests.integration.engine.conftest import Engine

BODIES = {
    "/v1/responses": {"input": "Hello", "max_output_tokens": 6, "store": False},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def overflowing_adapter(engine: Engine) -> str:
    """An adapter whose finite weights give activations that are not."""
    return engine.put("overflow-on-other-routes", variant="overflow", seed=9)


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_of_a_broken_adapter_names_the_fault(
    engine: Engine, overflowing_adapter: str, path: str
) -> None:
    status, data = await engine.post(path, {"model": overflowing_adapter, **BODIES[path]})
    assert status == 500, data
    assert orjson.loads(data)["error"]["type"] == "adapter_not_finite"


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_of_a_broken_adapter_ends_in_an_error_event_that_names_the_fault(
    engine: Engine, overflowing_adapter: str, path: str
) -> None:
    status, data = await engine.post(path, {"model": overflowing_adapter, "stream": True, **BODIES[path]})
    assert status == 200, "the stream had begun"
    *_, last = data.decode().strip().split("\n\n")
    kind, event_data = last.split("\n")
    assert kind == "event: error"
    assert orjson.loads(event_data.removeprefix("data: "))["error"]["type"] == "adapter_not_finite"
    assert not re.findall(rb"^event: .*delta$", data, re.M)


@pytest.mark.parametrize("path", BODIES)
async def test_a_prompt_that_is_too_long_names_the_parameter(engine: Engine, path: str) -> None:
    long: dict[str, Any] = {
        "/v1/responses": {"input": "word " * 3000},
        "/v1/messages": {"messages": [{"role": "user", "content": "word " * 3000}]},
    }
    status, data = await engine.post(path, {"model": engine.base_name, **BODIES[path], **long[path]})
    assert status == 400, data
    assert orjson.loads(data)["error"]["param"] == "input_tokens"


async def test_a_sound_stream_ends_with_its_usual_last_event(engine: Engine) -> None:
    ends = {"/v1/responses": "response.completed", "/v1/messages": "message_stop"}
    for path, end in ends.items():
        status, data = await engine.post(path, {"model": engine.base_name, "stream": True, **BODIES[path]})
        assert status == 200
        assert data.decode().strip().split("\n\n")[-1].startswith(f"event: {end}\n")


async def test_a_conversation_that_cannot_be_rendered_is_a_400(engine: Engine) -> None:
    """The gateway refuses this one before; whatever it does not know of ends in the same way."""
    function = {"name": "track", "arguments": "[" * 3000}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    body = {"model": engine.base_name, "messages": [{"role": "user", "content": "Hello"}, call], "max_tokens": 1}
    for path in ("/v1/chat/completions", "/tokenize"):
        status, data = await engine.post(path, body)
        assert status == 400, data
        assert orjson.loads(data)["error"]["param"] == "messages"
        assert b"recursion" not in data


@pytest.mark.filterwarnings("ignore")  # of what vLLM imports
def test_tool_arguments_that_are_not_an_object_are_a_server_error() -> None:
    """Without the gateway's `strict` a forced call may have arguments that are no object; vLLM's own converter breaks
    off on them with pydantic's words and 400. Needs vLLM, and no engine: what a model writes is given to it."""
    from types import SimpleNamespace

    from vllm.entrypoints.anthropic import api_router
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
    from vllm.exceptions import VLLMServerError

    from service.engine.plugin.answers import _install_messages

    patched = ("create_messages", "message_stream_converter", "messages_full_converter")
    serving: Any = type(
        "Serving", (AnthropicServingMessages,), {name: vars(AnthropicServingMessages)[name] for name in patched}
    )
    _install_messages(SimpleNamespace(translate_error_response=api_router.translate_error_response), serving)

    def answer(arguments: str) -> Any:
        function = {"name": "track", "arguments": arguments}
        message = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        response = ChatCompletionResponse.model_validate({"model": "m", "choices": choices, "usage": usage})
        return serving.messages_full_converter(serving.__new__(serving), response)

    assert answer('{"order": "tw-1"}').content[0].input == {"order": "tw-1"}
    for arguments in ('"tw-1"', "[1]", "{", ""):
        with pytest.raises(VLLMServerError, match="does not fit a message's form") as caught:
            answer(arguments)
        assert "pydantic" not in str(caught.value)
