"""A forced tool call has arguments that match the tool's schema, as agent frameworks rely on.

The base model here is far too small to choose well: its calls are valid only because their decoding is constrained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel, SecretStr

from tests.support.complete import ATTEMPTS, first_complete
from tests.support.gateway import Gateway

QUESTION = "Where is my parcel 7? It goes by DHL. Then cancel it."


class Track(BaseModel):
    """Where a parcel is."""

    carrier: Literal["ups", "dhl"]
    parcel: Literal[1, 7]


class Cancel(BaseModel):
    """Take a parcel back."""

    parcel: Literal[1, 7]
    refund: bool


MODELS: dict[str, type[BaseModel]] = {"track": Track, "cancel": Cancel}
SCHEMAS = {name: model.model_json_schema() for name, model in MODELS.items()}
CHAT_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()
]
RESPONSES_TOOLS: list[Any] = [
    {"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()
]
MESSAGES_TOOLS: list[Any] = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
TALK: list[Any] = [{"role": "user", "content": QUESTION}]
LONG_ENOUGH = 120


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        yield client


def check(name: str, arguments: Any) -> None:
    """Fails where the arguments are not the function's."""
    MODELS[name].model_validate(json.loads(arguments) if isinstance(arguments, str) else arguments)


def chat_is_cut(answer: Any) -> bool:
    return bool(answer.choices[0].finish_reason == "length")


# chat completions


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "track"}}])
def test_chat(gateway: Gateway, client: openai.OpenAI, choice: Any, seed: int) -> None:
    def attempt(number: int) -> Any:
        return client.chat.completions.create(
            model=gateway.base_name(),
            messages=TALK,
            tools=CHAT_TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=LONG_ENOUGH,
            temperature=1,
            seed=seed + 10 * number,
        )

    answer = first_complete(attempt, chat_is_cut)
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    check(call.function.name, call.function.arguments)
    assert choice == "required" or call.function.name == "track"


@pytest.mark.slow
def test_chat_in_a_stream(gateway: Gateway, client: openai.OpenAI) -> None:
    def attempt(number: int) -> Any:
        with client.chat.completions.stream(
            model=gateway.base_name(),
            messages=TALK,
            tools=CHAT_TOOLS,
            tool_choice={"type": "function", "function": {"name": "track"}},
            max_tokens=LONG_ENOUGH,
            temperature=min(number, 1),
            seed=number,
        ) as stream:
            return stream.get_final_completion()

    [call, *_] = first_complete(attempt, chat_is_cut).choices[0].message.tool_calls or []
    check("track", call.function.arguments)


@pytest.mark.slow
def test_every_call_of_several_has_its_schema(gateway: Gateway, client: openai.OpenAI) -> None:
    """However many calls the model makes: the last may be cut, and then it is none."""
    answer = client.chat.completions.create(
        model=gateway.base_name(),
        messages=TALK,
        tools=CHAT_TOOLS,
        tool_choice="required",
        max_tokens=LONG_ENOUGH,
        temperature=0,
    )
    [choice] = answer.choices
    calls = choice.message.tool_calls or []
    assert calls or choice.finish_reason == "length"
    for call in calls:
        assert call.type == "function"
        check(call.function.name, call.function.arguments)


# responses


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "track"}])
def test_responses(gateway: Gateway, client: openai.OpenAI, choice: Any) -> None:
    answer = client.responses.create(
        model=gateway.base_name(),
        input=QUESTION,
        tools=RESPONSES_TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        max_output_tokens=LONG_ENOUGH,
        temperature=0,
    )
    [call] = [item for item in answer.output if item.type == "function_call"]
    check(call.name, call.arguments)


# messages


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "track"}])
def test_messages(gateway: Gateway, choice: Any, stream: bool) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    body: dict[str, Any] = {
        "model": gateway.base_name(),
        "messages": TALK,
        "tools": MESSAGES_TOOLS,
        "tool_choice": choice,
        "max_tokens": LONG_ENOUGH,
    }
    with anthropic.Anthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:

        def attempt(number: int) -> Any:
            sampled = {"temperature": min(number, 1)}
            if not stream:
                return client.messages.create(**body, extra_body=sampled)
            with client.messages.stream(**body, extra_body=sampled) as events:
                return events.get_final_message()

        answer = first_complete(attempt, lambda answer: bool(answer.stop_reason == "max_tokens"))
    [call] = [block for block in answer.content if block.type == "tool_use"]
    check(call.name, call.input)
    assert answer.stop_reason == "tool_use"


# frameworks


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["any", "Track"])
def test_langchain(gateway: Gateway, choice: str) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model=gateway.base_name(),
        base_url=f"{gateway.url}/v1",
        api_key=SecretStr(gateway.key),
        max_retries=0,
        temperature=0,
        max_completion_tokens=LONG_ENOUGH,
    )
    answer: Any = model.bind_tools([Track], tool_choice=choice, parallel_tool_calls=False).invoke(QUESTION)
    [call] = answer.tool_calls
    Track.model_validate(call["args"])
    assert answer.invalid_tool_calls == []
    if choice == "any":
        cancelled = model.with_structured_output(Cancel, method="function_calling").invoke(QUESTION)
        assert isinstance(cancelled, Cancel)


@pytest.mark.slow
async def test_pydantic_ai(gateway: Gateway) -> None:
    from pydantic_ai import Agent, capture_run_messages
    from pydantic_ai.exceptions import UnexpectedModelBehavior
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.settings import ModelSettings

    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        model = OpenAIChatModel(gateway.base_name(), provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, output_type=Track, retries=0)
        for number in range(ATTEMPTS):
            settings = ModelSettings(
                temperature=min(number, 1), seed=number, max_tokens=LONG_ENOUGH, parallel_tool_calls=False
            )
            with capture_run_messages() as messages:
                try:
                    result = await agent.run(QUESTION, model_settings=settings)
                except UnexpectedModelBehavior:
                    if not any(getattr(message, "finish_reason", None) == "length" for message in messages):
                        raise
                    continue  # blanks to the end: see `first_complete`
            assert isinstance(result.output, Track)
            return
    pytest.fail("no answer was complete")


INSTRUCTOR = {
    "properties": {
        "carrier": {"enum": ["ups", "dhl"], "title": "Carrier", "type": "string"},
        "parcel": {"enum": [1, 7], "title": "Parcel", "type": "integer"},
    },
    "required": ["carrier", "parcel"],
    "type": "object",
}


@pytest.mark.slow
def test_instructor(gateway: Gateway) -> None:
    """What instructor 1.17 sends for `Track` in its mode TOOLS: it cannot be installed beside rich 15."""
    function = {"name": "Track", "description": "Where a parcel is.", "parameters": INSTRUCTOR}
    body = {
        "model": gateway.base_name(),
        "messages": TALK,
        "tool_choice": {"type": "function", "function": {"name": "Track"}},
        "tools": [{"type": "function", "function": function}],
        "temperature": 0,  # sampled, a small model may go on with blanks until the context ends
    }
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    [call] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "Track"
    Track.model_validate_json(call["function"]["arguments"])


@pytest.mark.slow
def test_instructor_by_responses(gateway: Gateway) -> None:
    """Its mode RESPONSES_TOOLS, which asks for the answer's text in the same schema, too."""
    schema = {**INSTRUCTOR, "title": "Track", "description": "Where a parcel is.", "additionalProperties": False}
    body = {
        "model": gateway.base_name(),
        "input": TALK,
        "text": {"format": {"type": "json_schema", "name": "Track", "strict": True, "schema": schema}},
        "tool_choice": {"type": "function", "name": "Track"},
        "tools": [
            {"type": "function", "name": "Track", "parameters": schema, "description": "Where a parcel is."},
        ],
        "temperature": 0,
    }
    with gateway.http() as http:
        answer = http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    [call] = [item for item in answer.json()["output"] if item["type"] == "function_call"]
    Track.model_validate_json(call["arguments"])
