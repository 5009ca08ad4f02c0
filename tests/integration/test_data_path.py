"""The data path against the real engine: which fields pass, which are bounded or refused, and how a request ends."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from typing import Any

import httpx
import openai
import pytest

from tests.support.complete import first_complete
from tests.support.gateway import TIMEOUT, Gateway

PATIENCE_S = 600.0
REFUSED = {
    "lora_path": "/etc",
    "chat_template": "{{ messages }}",
    "kv_transfer_params": {"a": 1},
    "mm_processor_kwargs": {"a": 1},
    "cache_salt": "x",
    "priority": 1,
    "prompt_embeds": "AAAA",
    "vllm_xargs": {"a": 1},
}
ENGINE_ROUTES = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/pause",
    "/resume",
    "/sleep",
    "/wake_up",
    "/invocations",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/hatrack/plugin",
    "/server_info",
    "/inference/v1/generate",
)


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "model": "tidewater",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    return client.chat.completions.create(**(settings | more))


def ask_until_complete(client: openai.OpenAI, **more: Any) -> Any:
    """The choice of a structured answer that was not cut at its token limit."""

    def attempt(number: int) -> Any:
        return ask(client, temperature=min(number, 1), seed=number, **more).choices[0]

    return first_complete(attempt, lambda choice: bool(choice.finish_reason == "length"))


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"type": "string", "enum": ["glad", "sad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema, "strict": True}}
    choice = ask_until_complete(client, response_format=form, max_tokens=100)
    assert json.loads(choice.message.content)["mood"] in {"glad", "sad"}


def test_forced_tool_call(client: openai.OpenAI) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "track",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"carrier": {"type": "string", "enum": ["ups", "dhl"]}},
                "required": ["carrier"],
                "additionalProperties": False,
            },
        },
    }
    choice = {"type": "function", "function": {"name": "track"}}
    call = ask_until_complete(client, tools=[tool], tool_choice=choice, max_tokens=100).message.tool_calls[0]
    assert call.function.name == "track"
    assert json.loads(call.function.arguments)["carrier"] in {"ups", "dhl"}


@pytest.mark.slow
def test_logprobs_n_stop_seed_and_penalties(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3, n=2, seed=7, temperature=0.8, presence_penalty=0.5)
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 3
    first = ask(client, seed=11, temperature=1.0).choices[0].message.content
    assert ask(client, seed=11, temperature=1.0).choices[0].message.content == first
    stopped = ask(client, stop=[","], max_tokens=40)
    assert stopped.choices[0].finish_reason == "stop"
    assert "," not in stopped.choices[0].message.content


def test_completions_and_tokenize(gateway: Gateway, client: openai.OpenAI) -> None:
    # a text may be empty where the model ends at once: the engine goes on and counts
    completed = client.completions.create(
        model="tidewater", prompt="Ahoy", max_tokens=4, temperature=0, extra_body={"ignore_eos": True}
    )
    assert completed.usage is not None
    assert (completed.usage.completion_tokens, completed.choices[0].finish_reason) == (4, "length")
    assert completed.choices[0].text
    with gateway.http() as http:
        tokens = http.post("/tokenize", json={"model": "tidewater", "prompt": "hello there"}).json()
        back = http.post("/detokenize", json={"model": "tidewater", "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == "hello there"


def test_a_base_that_embeds_nothing_answers_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tidewater", input="hello")


@pytest.mark.parametrize("field", REFUSED)
def test_fields_that_reach_into_the_engine_are_refused_by_name(gateway: Gateway, field: str) -> None:
    response = gateway.chat("tidewater", "hello", **{field: REFUSED[field]})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 1000}, "n"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 500, "logprobs": True}, "top_logprobs"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_name_of_its_field(
    gateway: Gateway, body: dict[str, Any], param: str
) -> None:
    response = gateway.chat("tidewater", "hello", **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_a_content_part_with_a_url_is_refused(gateway: Gateway) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}
    message = {"role": "user", "content": [part]}
    response = gateway.chat("tidewater", "", messages=[message])
    assert response.status_code == 400, response.text


@pytest.mark.parametrize("route", ENGINE_ROUTES)
def test_every_other_route_of_the_engine_answers_404(gateway: Gateway, route: str) -> None:
    with gateway.http() as http:
        assert http.post(route, json={}).status_code == 404
        assert http.get(route).status_code == 404


def test_models_are_addressed_by_name_version_and_alias(gateway: Gateway, client: openai.OpenAI) -> None:
    assert client.models.retrieve("tidewater@1").id == "tidewater@1"
    assert client.models.retrieve("tidewater:live").id == "tidewater:live"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    base = client.models.list().data[0].id
    beside = gateway.chat(base, "hello", adapter="pemberton")
    assert beside.headers["x-hatrack-adapter"] == "pemberton@1"
    for unknown in ("nobody", "tidewater@99", "tidewater:nobody", "../etc", "a" * 64):
        response = gateway.chat(unknown, "hello")
        assert response.status_code == 404, (unknown, response.text)
        assert response.json()["error"]["code"] == "model_not_found"


def test_without_a_key_nothing_but_health_answers(gateway: Gateway) -> None:
    for path in ("/v1/models", "/v1/adapters"):
        response = httpx.get(gateway.url + path, timeout=TIMEOUT)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{gateway.url}/healthz", timeout=TIMEOUT).status_code == 200
    assert httpx.get(f"{gateway.url}/readyz", timeout=TIMEOUT).status_code == 200


def test_a_stream_includes_usage_only_when_asked_to(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)


def engine_metric(gateway: Gateway, *names: str) -> float:
    """The sum of some of the engine's own metrics, over its socket."""
    lines = gateway.ask_engine("/metrics").text.splitlines()
    samples = [line for line in lines if line.startswith(tuple(f"{name}{{" for name in names))]
    assert samples, names
    return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


async def generated(gateway: Gateway) -> float:
    """Tokens that the engine has generated since it started."""
    return await asyncio.to_thread(engine_metric, gateway, "vllm:generation_tokens_total")


async def wait_until_idle(gateway: Gateway) -> None:
    """Wait until the engine works on nothing, and its count of tokens is final."""
    deadline = time.monotonic() + PATIENCE_S
    at_work = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    while await asyncio.to_thread(engine_metric, gateway, *at_work) > 0:
        assert time.monotonic() < deadline, "the engine still generates for a client that has gone"
        await asyncio.sleep(0.05)


async def tokens_generated_after_leaving(gateway: Gateway, path: str, body: dict[str, Any]) -> float:
    """Disconnect while the engine works on a request; returns the tokens that it generates after that.

    Tokens show better than a clock how soon the engine is told: on a slow machine it generates slowly, too.
    """
    headers = {"authorization": f"Bearer {gateway.key}"}
    await wait_until_idle(gateway)  # of what a test before this one has left
    beginning = await generated(gateway)
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=TIMEOUT) as http:
        request = http.build_request("POST", path, json=body)
        asking = asyncio.create_task(http.send(request, stream=bool(body["stream"])))
        if body["stream"]:
            response = await asking
            assert response.status_code == 200
            async with aclosing(response.aiter_bytes()) as pieces:
                await anext(pieces)
                before = await generated(gateway)
            await response.aclose()
        else:
            while (before := await generated(gateway)) == beginning and not asking.done():  # noqa: ASYNC110 (over HTTP)
                await asyncio.sleep(0.05)
            assert not asking.done(), asking.result().text
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await wait_until_idle(gateway)
    return await generated(gateway) - before


def test_usage_says_how_much_of_a_prompt_was_cached(gateway: Gateway) -> None:
    text = "The parcel with the brass lantern is late again. " * 60
    base = gateway.base_name()
    first, second = (gateway.chat(base, text, max_tokens=2).json()["usage"] for _ in range(2))
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < second["prompt_tokens"] == first["prompt_tokens"]
    # Anthropic's usage counts what was cached apart from the rest of the input
    body = {"model": base, "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    with gateway.http() as client:
        usage = client.post("/v1/messages", json=body).json()["usage"]
    assert usage["cache_read_input_tokens"] == cached
    assert usage["input_tokens"] == second["prompt_tokens"] - cached


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine(gateway: Gateway, stream: bool) -> None:
    body = {
        "model": "tidewater",
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": 1500,
        "stream": stream,
        "ignore_eos": True,
    }
    assert await tokens_generated_after_leaving(gateway, "/v1/chat/completions", body) < 1000


def test_broken_bodies_are_400_and_an_oversized_one_is_413(gateway: Gateway) -> None:
    with gateway.http() as http:
        for body in (b"", b"{", b"[]", b'{"model": NaN}', b"\xff", b'"x"'):
            response = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
            assert response.status_code == 400, (body, response.text)
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        big = http.post("/v1/chat/completions", content=b" " * (9 << 20), headers={"content-type": "application/json"})
        assert big.status_code == 413
        assert http.get("/v1/chat/completions").status_code == 405
        assert http.get("/no/such/route").status_code == 404
