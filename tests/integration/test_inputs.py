"""What a caller sends never counts as the engine's failure, delays nobody, and changes nobody else's answer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import httpx
import pytest

from tests.support.gateway import TIMEOUT, Gateway

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
VOICE = "tidewater"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def user(content: Any = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def conversation_with_call(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "track", "arguments": arguments}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [user(), answer, {"role": "tool", "tool_call_id": "call_1", "content": "in Lisbon"}]


def picture(url: str) -> list[dict[str, Any]]:
    return [user([{"type": "image_url", "image_url": {"url": url}}])]


def forced_tool(schema: dict[str, Any]) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": "track", "parameters": schema}}]
    return {"tools": tools, "tool_choice": "required"}


def json_response(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


UNUSUAL_REQUESTS: dict[str, dict[str, Any]] = {
    "brackets in arguments": {"messages": conversation_with_call("[" * 3000)},
    "deep arguments": {"messages": conversation_with_call('{"a":' * 64 + "1" + "}" * 64)},
    "arguments with half of a pair": {"messages": conversation_with_call('{"a": "\\ud83d"}')},
    "arguments with a long number": {"messages": conversation_with_call('{"a": ' + "9" * 5000 + "}")},
    "arguments that are no object": {"messages": conversation_with_call("[1e999, NaN]")},
    "roles in no order": {"messages": [{"role": "tool", "content": "x"}, {"role": "system", "content": "y"}]},
    "nothing said": {"messages": [user([])]},
    "continue what is not there": {"continue_final_message": True, "add_generation_prompt": False},
    "template variables": {"chat_template_kwargs": {"loop": 1, "raise_exception": "x", "bos_token": 3}},
    "a picture": {"messages": picture(f"data:image/png;base64,{PIXEL}")},
    "no picture": {"messages": picture("data:image/png;base64,!!!")},
    "a schema of no type": {**forced_tool({"type": "object", "properties": {"a": {"type": "nope"}}})},
    "a schema without its part": forced_tool({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}),
    "a schema of nothing": forced_tool({"type": "object", "properties": {"a": False}, "required": ["a"]}),
    "properties as a list": forced_tool({"type": "object", "properties": []}),
    "an answer of no type": json_response({"type": "nope"}),
    "an answer without a schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    "an empty structure": {"structured_outputs": {}},
    "two structures": {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    "a broken expression": {"structured_outputs": {"regex": "("}},
    "a broken tag": {"structured_outputs": {"structural_tag": "{"}},
    "an empty choice": {"structured_outputs": {"choice": [""]}},
    "an empty stop": {"stop": ["", "\0"]},
    "an empty bad word": {"bad_words": [""]},
    "tokens that do not exist": {"allowed_token_ids": [2**31 - 1]},
    "a bias on none": {"logit_bias": {"9" * 30: 1}},
    "log-probabilities of none": {"logprobs": True, "logprob_token_ids": [2**31 - 1]},
    "a budget of thoughts": {"thinking_token_budget": 0},
    "more at least than at most": {"min_tokens": 9},
}


@pytest.mark.parametrize("case", UNUSUAL_REQUESTS)
def test_a_callers_input_is_never_a_5xx(gateway: Gateway, case: str) -> None:
    body = {"model": VOICE, "messages": [user()], "max_tokens": 3, "temperature": 0, **UNUSUAL_REQUESTS[case]}
    with gateway.http() as http:
        answer = http.post(CHAT, json=body)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:  # an answer names the engine in its `system_fingerprint`
        for internal in ("pydantic", "Traceback", "vllm", "RecursionError", "site-packages", "jinja"):
            assert internal not in answer.text


UNUSUAL_REQUESTS_ELSEWHERE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/responses", {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[" * 3000}]}),
    ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "none", "output": "x"}]}),
    ("/v1/responses", {"input": [{"type": "reasoning", "summary": []}]}),
    ("/v1/messages", {"messages": [user([{"type": "tool_result", "tool_use_id": "none"}])], "max_tokens": 3}),
    ("/v1/messages/count_tokens", {"messages": [user([])]}),
    (COMPLETIONS, {"prompt": [2**31 - 1], "max_tokens": 1}),
    (COMPLETIONS, {"prompt": "", "max_tokens": 1}),
    ("/tokenize", {"messages": conversation_with_call("not JSON"), "return_token_strs": True}),
    ("/detokenize", {"tokens": [2**31 - 1]}),
    ("/detokenize", {"tokens": []}),
]


@pytest.mark.parametrize(("path", "body"), UNUSUAL_REQUESTS_ELSEWHERE, ids=range(len(UNUSUAL_REQUESTS_ELSEWHERE)))
def test_a_callers_input_on_other_routes_is_never_a_5xx(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    with gateway.http() as http:
        answer = http.post(path, json={"model": VOICE, **body})
    assert answer.status_code < 500, answer.text


# counting


def test_the_tokenizing_routes_are_bounded_and_charged_against_the_token_limit(gateway: Gateway) -> None:
    with gateway.http() as http:
        made = http.post("/v1/keys", json={"name": "counting", "limits": {"tokens_per_minute": 100}}).json()
    headers = {"authorization": f"Bearer {made['key']}"}
    base = gateway.base_name()
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=TIMEOUT) as http:
        long = http.post("/tokenize", json={"model": base, "prompt": "word " * 1_500_000})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        first = http.post("/tokenize", json={"model": base, "prompt": "word " * 2_000})
        assert first.status_code == 200, first.text
        assert first.json()["count"] >= 2_000
        talk = {"model": base, "messages": [user("word " * 900)]}
        for path in ("/tokenize", "/v1/messages/count_tokens"):
            assert http.post(path, json=talk).status_code == 429, "the first has spent twenty minutes' tokens"
        assert http.post("/detokenize", json={"model": base, "tokens": [5] * 900}).status_code == 429


# extreme requests beside a stream

EXTREMES: list[dict[str, Any]] = [
    {"n": 8, "temperature": 2, "top_p": 0.1},
    {"allowed_token_ids": [11]},
    {"allowed_token_ids": list(range(49_000))},
    {"prompt_logprobs": 20},
    {"bad_words": [letter * 256 for letter in "abcdefghijklmnop"]},
    {"logit_bias": {str(token): 100 for token in range(1000, 2024)}},
    {"logit_bias": {str(token): -100 for token in range(1024)}, "n": 4, "temperature": 1},
    {"thinking_token_budget": 0},
    {"thinking_token_budget": 2048},
    {"logprobs": True, "top_logprobs": 20, "repetition_penalty": 10, "min_tokens": 4},
]


WEEK = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, "
CERTAIN = 1.0
"""Nats between a token and the next best one: how a batch is rounded, which depends on who else is in it, moves them
by a tenth of that."""


def greedy_stream(gateway: Gateway) -> list[tuple[str, float]]:
    """The base's greedy answer as it streams: each token, and how far the next best one is behind it."""
    body = {
        "model": gateway.base_name(),
        "prompt": 4 * WEEK + "Monday, Tuesday,",
        "max_tokens": 40,
        "temperature": 0,
        "stream": True,
        "logprobs": 2,
        "return_tokens_as_token_ids": True,
    }
    tokens: list[tuple[str, float]] = []
    with gateway.http() as http, http.stream("POST", COMPLETIONS, json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    shown = choice.get("logprobs") or {"tokens": [], "top_logprobs": []}
                    for token, best in zip(shown["tokens"], shown["top_logprobs"], strict=True):
                        first, second, *_ = sorted(best.values(), reverse=True)
                        tokens.append((token, first - second))
    return tokens


def certain_tokens(stream: list[tuple[str, float]]) -> list[str]:
    """Its tokens before the first that rounding might make another one of."""
    return [token for token, ahead in takewhile(lambda pair: pair[1] > CERTAIN, stream)]


@pytest.mark.slow
def test_extreme_requests_beside_a_greedy_stream_do_not_change_its_tokens(gateway: Gateway) -> None:
    alone = certain_tokens(greedy_stream(gateway))
    assert len(alone) >= 4, "what has been said four times is certain"
    again = greedy_stream(gateway)
    assert [token for token, _ in again][: len(alone)] == alone, "alone it says the same each time"

    def ask(extreme: dict[str, Any]) -> tuple[int, str]:
        body = {"model": gateway.base_name(), "messages": [user("Tell me of it.")], "max_tokens": 6, **extreme}
        with gateway.http() as http:
            answer = http.post(CHAT, json=body)
        return answer.status_code, answer.text

    with ThreadPoolExecutor(len(EXTREMES) + 2) as pool:
        beside = [pool.submit(greedy_stream, gateway)]
        asked = [pool.submit(ask, extreme) for extreme in EXTREMES]
        beside.append(pool.submit(greedy_stream, gateway))
        for stream in beside:
            assert [token for token, _ in stream.result()][: len(alone)] == alone
        for answer in asked:
            status, text = answer.result()
            assert status in (200, 400), text
