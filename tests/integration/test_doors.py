"""`/v1/responses` and `/v1/messages` through the official clients, against the real engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.integration.test_data_path import tokens_generated_after_leaving
from tests.support.complete import first_complete
from tests.support.gateway import Gateway
from tests.support.voices import speaks
from tests.support.waiting import call_until_refused

QUESTION = "Do you sell umbrellas?"
VOICES = ("tidewater", "pemberton")
SCHEMA = {
    "type": "object",
    "properties": {"carrier": {"type": "string", "enum": ["ups", "dhl"]}},
    "required": ["carrier"],
    "additionalProperties": False,
}
SHORT: dict[str, Any] = {"temperature": 0}


@pytest.fixture(scope="module")
def openai_client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        yield client


def respond(client: openai.OpenAI, model: str, **more: Any) -> Any:
    return client.responses.create(**{"model": model, "input": QUESTION, "max_output_tokens": 40, **SHORT, **more})


def message(client: anthropic.Anthropic, model: str, **more: Any) -> Any:
    """The newest of Anthropic's own models take no temperature, and so its client has no argument for one."""
    user = [{"role": "user", "content": QUESTION}]
    body = SHORT | more.pop("extra_body", {})
    return client.messages.create(**{"model": model, "messages": user, "max_tokens": 40, "extra_body": body, **more})


def prompt_tokens(gateway: Gateway, model: str) -> int:
    """What the engine counts of the same question asked by chat."""
    return int(gateway.chat(model, QUESTION, max_tokens=1).json()["usage"]["prompt_tokens"])


def text_of(answer: anthropic.types.Message) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


# /v1/responses


@pytest.mark.parametrize("voice", VOICES)
def test_responses_speak_in_the_adapters_voice(gateway: Gateway, openai_client: openai.OpenAI, voice: str) -> None:
    raw = openai_client.responses.with_raw_response.create(
        model=voice, input=QUESTION, max_output_tokens=40, temperature=0, store=False
    )
    answer = raw.parse()
    assert speaks(voice, answer.output_text), answer.output_text
    assert answer.model == voice
    assert raw.headers["x-hatrack-adapter"] == f"{voice}@1"
    assert raw.headers["x-hatrack-digest"] not in raw.text
    assert answer.usage is not None
    assert answer.usage.input_tokens == prompt_tokens(gateway, voice)
    assert 0 < answer.usage.output_tokens <= 40


@pytest.mark.slow
def test_responses_of_the_base_and_by_the_adapter_field(gateway: Gateway, openai_client: openai.OpenAI) -> None:
    base = gateway.base_name()
    assert not speaks("pemberton", respond(openai_client, base).output_text)
    for model, more, label in (
        ("pemberton@1", {}, "pemberton@1"),
        ("pemberton:live", {}, "pemberton:live"),
        (base, {"extra_body": {"adapter": "pemberton"}}, "pemberton"),
    ):
        answer = respond(openai_client, model, **more)
        assert answer.model == label
        assert speaks("pemberton", answer.output_text), answer.output_text


def test_responses_stream(gateway: Gateway, openai_client: openai.OpenAI) -> None:
    with openai_client.responses.stream(
        model="tidewater", input=QUESTION, max_output_tokens=200, temperature=0
    ) as stream:
        events = list(stream)
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    last: Any = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    final = last.response
    assert final.usage is not None
    # how long a story the model makes of it is the model's: it is complete unless it took all that it was given
    assert last.type == "response.completed" or final.usage.output_tokens == 200
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text
    assert speaks("tidewater", text), text
    responses = [event.response for event in events if hasattr(event, "response")]
    assert {response.model for response in responses} == {"tidewater"}
    assert final.usage.input_tokens == prompt_tokens(gateway, "tidewater")
    assert final.usage.output_tokens > 0


async def test_responses_stream_async_is_incomplete_at_max_output_tokens(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        stream = await client.responses.create(
            model="tidewater",
            input=QUESTION,
            max_output_tokens=5,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 5


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_responses_call_a_function_and_accept_its_output(openai_client: openai.OpenAI, stream: bool) -> None:
    tool = {"type": "function", "name": "track", "strict": True, "parameters": SCHEMA}
    more: dict[str, Any] = {"tools": [tool], "tool_choice": {"type": "function", "name": "track"}}
    answer = respond(openai_client, "tidewater", max_output_tokens=200, stream=stream, **more)
    if stream:
        answer = list(answer)[-1].response
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments)["carrier"] in {"ups", "dhl"}
    conversation = [
        {"role": "user", "content": "Where is my parcel?"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "in Lisbon"},
    ]
    assert respond(openai_client, "tidewater", input=conversation, tools=[tool]).output_text


def test_responses_structured_text(openai_client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "name": "parcel", "schema": SCHEMA, "strict": True}

    def attempt(number: int) -> Any:
        sampled = {"temperature": min(number, 1)}
        return respond(openai_client, "tidewater", text={"format": form}, max_output_tokens=100, **sampled)

    answer = first_complete(attempt, lambda answer: bool(answer.status == "incomplete"))
    assert json.loads(answer.output_text)["carrier"] in {"ups", "dhl"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ],
)
def test_responses_refuse_unsupported_options_by_name(
    openai_client: openai.OpenAI, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        respond(openai_client, "tidewater", **more)
    assert refused.value.param == param


def test_responses_are_not_stored_and_errors_are_the_clients_own(
    gateway: Gateway, openai_client: openai.OpenAI
) -> None:
    answer = respond(openai_client, "tidewater", store=None, background=False, previous_response_id=None)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(answer.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        respond(openai_client, "nobody")
    with pytest.raises(openai.BadRequestError) as long:
        respond(openai_client, "tidewater", input="word " * 3000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        respond(openai_client.with_options(api_key="wrong"), "tidewater")


# /v1/messages


@pytest.mark.parametrize("voice", VOICES)
def test_messages_speak_in_the_adapters_voice(
    gateway: Gateway, anthropic_client: anthropic.Anthropic, voice: str
) -> None:
    raw = anthropic_client.messages.with_raw_response.create(
        model=voice, messages=[{"role": "user", "content": QUESTION}], max_tokens=40, extra_body=SHORT
    )
    answer = raw.parse()
    assert speaks(voice, text_of(answer)), answer.content
    assert answer.model == voice
    assert answer.id.startswith("msg_")
    assert raw.headers["x-hatrack-adapter"] == f"{voice}@1"
    assert raw.headers["x-hatrack-digest"] not in raw.text()
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert answer.usage.input_tokens == prompt_tokens(gateway, voice)
    assert 0 < answer.usage.output_tokens <= 40


@pytest.mark.slow
def test_messages_of_the_base_and_by_the_adapter_field(gateway: Gateway, anthropic_client: anthropic.Anthropic) -> None:
    base = gateway.base_name()
    assert not speaks("pemberton", text_of(message(anthropic_client, base)))
    for model, more, label in (
        ("pemberton@1", {}, "pemberton@1"),
        (base, {"extra_body": {"adapter": "pemberton"}}, "pemberton"),
    ):
        answer = message(anthropic_client, model, **more)
        assert answer.model == label
        assert speaks("pemberton", text_of(answer)), answer.content


def test_messages_stream(gateway: Gateway, anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(
        model="tidewater", messages=[{"role": "user", "content": QUESTION}], max_tokens=5, extra_body=SHORT
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final)
    assert text
    assert final.model == "tidewater"
    assert final.stop_reason == "max_tokens"
    assert final.usage.input_tokens == prompt_tokens(gateway, "tidewater")
    assert final.usage.output_tokens == 5


async def test_messages_stream_async_sends_its_events_in_order(gateway: Gateway) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        stream = await client.messages.create(
            model="tidewater",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=40,
            extra_body=SHORT,
            stream=True,
        )
        kinds = [event.type async for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


@pytest.mark.slow
def test_messages_call_a_tool_and_accept_its_result(anthropic_client: anthropic.Anthropic) -> None:
    tool = {"name": "track", "description": "Where a parcel is", "input_schema": SCHEMA, "strict": True}
    first = {"role": "user", "content": "Where is my parcel?"}
    use = {"type": "tool_use", "id": "toolu_1", "name": "track", "input": {"carrier": "ups"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "in Lisbon"}]}
    talk = [first, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    answer = message(anthropic_client, "tidewater", messages=talk, tools=[tool], tool_choice={"type": "none"})
    assert text_of(answer)
    forced = message(
        anthropic_client, "tidewater", tools=[tool], tool_choice={"type": "tool", "name": "track"}, max_tokens=200
    )
    used = [block.name for block in forced.content if block.type == "tool_use"]
    assert used == ["track"] or forced.stop_reason == "max_tokens"


def test_messages_stop_at_a_stop_sequence(anthropic_client: anthropic.Anthropic) -> None:
    # none of these in 60 tokens is nothing that anybody would say
    answer = message(anthropic_client, "tidewater", stop_sequences=[",", ".", "e", "a"], max_tokens=60)
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence in {",", ".", "e", "a"}
    assert not re.search("[,.ea]", text_of(answer))


def test_messages_count_tokens(anthropic_client: anthropic.Anthropic) -> None:
    user = [{"role": "user", "content": QUESTION}]
    counted = anthropic_client.messages.count_tokens(model="tidewater", messages=user, system="Be brief.")
    answer = message(anthropic_client, "tidewater", system="Be brief.", max_tokens=1)
    assert counted.input_tokens == answer.usage.input_tokens


def test_messages_errors_are_the_clients_own(gateway: Gateway, anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        message(anthropic_client, "nobody")
    body: Any = missing.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
    assert missing.value.request_id == body["request_id"]
    with pytest.raises(anthropic.AuthenticationError):
        message(anthropic_client.with_options(api_key="wrong"), "tidewater")
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        message(anthropic_client, "tidewater", max_tokens=3000)
    with pytest.raises(anthropic.BadRequestError) as long:
        message(anthropic_client, "tidewater", messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.body["error"]["code"] == "context_length_exceeded"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="reasoning"):
        message(anthropic_client, "tidewater", max_tokens=1500, thinking={"type": "enabled", "budget_tokens": 1024})
    with pytest.raises(anthropic.NotFoundError):
        anthropic_client.messages.batches.retrieve("msgbatch_1")


# both


def test_limits_and_scopes_raise_the_own_errors_of_both_clients(gateway: Gateway) -> None:
    with gateway.http() as http:
        limited = http.post("/v1/keys", json={"name": "one", "scopes": ["infer"], "limits": {"requests_per_minute": 2}})
        idle = http.post("/v1/keys", json={"name": "none", "scopes": ["train"]})
    assert limited.status_code == idle.status_code == 201, limited.text + idle.text
    with anthropic.Anthropic(base_url=gateway.url, api_key=limited.json()["key"], max_retries=0) as client:
        message(client, "tidewater", max_tokens=1)
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=limited.json()["key"], max_retries=0) as openai_client:
            respond(openai_client, "tidewater", max_output_tokens=1)
            with pytest.raises(openai.RateLimitError):
                call_until_refused(lambda: respond(openai_client, "tidewater", max_output_tokens=1))
        with pytest.raises(anthropic.RateLimitError) as refused:
            call_until_refused(lambda: message(client, "tidewater", max_tokens=1))
        assert int(refused.value.response.headers["retry-after"]) > 0
        with pytest.raises(anthropic.PermissionDeniedError, match="infer"):
            message(client.with_options(api_key=idle.json()["key"]), "tidewater", max_tokens=1)


LONG: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "Tell me a long story.", "max_output_tokens": 1500, "ignore_eos": True},
    "/v1/messages": {
        "messages": [{"role": "user", "content": "Tell me many numbers."}],
        "max_tokens": 1500,
        "output_config": {
            "format": {
                "type": "json_schema",
                "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 700},
            }
        },
    },
}
"""What no engine here answers in seconds."""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", LONG)
async def test_a_client_that_leaves_frees_the_engine(gateway: Gateway, path: str, stream: bool) -> None:
    body = {"model": gateway.base_name(), "temperature": 0, "stream": stream, **LONG[path]}
    assert await tokens_generated_after_leaving(gateway, path, body) < 1000
