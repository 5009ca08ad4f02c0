"""Structured outputs on the real engine: grammars that would stall it are refused on every route, others are obeyed."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import httpx
import pytest
import regex
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import TIMEOUT, Gateway

WAYS = "(" + "|".join(f"[a-z]{{{n}}}.{{1,{n}}}" for n in range(1, 31)) + ")+"
"""A grammar bomb: 478 bytes that held every tenant's chat for half a minute."""
SPLITS = "root ::= s\ns ::= s s | [a-z]\n"
"""Another: nothing about its text is large, and a trial alone finds out."""
PATIENCE_S = 300.0
"""A scrape is answered with the last one's text for a second."""
ORDERED = regex.compile(r'\{\s*"id"\s*:\s*"[A-Z]{2}[0-9]{3}"\s*,\s*"state"\s*:\s*"(sent|lost)"\s*\}\s*', regex.ASCII)
"""An order as JSON, which may have blanks anywhere; of those a small model can write more than there is room for."""
MANY_BLANKS = 60
"""An order has some 20 tokens without them, and room for 120."""
ASKED = [{"role": "user", "content": "Where is my parcel?"}]
ORDER = {
    "type": "object",
    "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}, "state": {"enum": ["sent", "lost"]}},
    "required": ["id", "state"],
    "additionalProperties": False,
}


def key_of(gateway: Gateway, project: str) -> str:
    return str(gateway.create_key(name=project, project=project)["key"])


def post(gateway: Gateway, key: str, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{gateway.url}{path}", json=body, headers=headers, timeout=TIMEOUT)


def refused_so_far(gateway: Gateway) -> float:
    """The count of refused grammars. Asked again where it is missing: on a busy machine a scrape omits late parts."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        text = gateway.metrics()
        counts = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "hatrack_structured_outputs_total" and sample.labels["outcome"] == "refused"
        ]
        if counts:
            return sum(counts)
        assert time.monotonic() < deadline, text


def attacks_on_every_route(model: str) -> list[tuple[str, dict[str, Any], str]]:
    """The attack in every field that ends as a grammar: path, body, the field that the refusal names."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": WAYS}}}
    chat: dict[str, Any] = {"model": model, "messages": ASKED, "max_tokens": 8}
    text: dict[str, Any] = {"model": model, "prompt": "Hello", "max_tokens": 8}
    items: dict[str, Any] = {"model": model, "input": "Hello", "max_output_tokens": 16}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    tool = {"name": "f", "parameters": schema}
    function = {"type": "function", "function": tool}
    tag = {"type": "structural_tag", "format": {"type": "regex", "pattern": WAYS}}
    regex = {"structured_outputs": {"regex": WAYS}}
    return [
        ("/v1/chat/completions", chat | regex, "structured_outputs.regex"),
        ("/v1/chat/completions", chat | {"structured_outputs": {"grammar": SPLITS}}, "structured_outputs.grammar"),
        ("/v1/chat/completions", chat | {"structured_outputs": {"json": schema}}, "structured_outputs.json"),
        ("/v1/chat/completions", chat | {"response_format": form}, "response_format.json_schema.schema"),
        ("/v1/chat/completions", chat | {"response_format": tag}, "response_format"),
        (
            "/v1/chat/completions",
            chat | {"tools": [function], "tool_choice": "required"},
            "tools.0.function.parameters",
        ),
        ("/v1/completions", text | regex, "structured_outputs.regex"),
        ("/v1/completions", text | {"response_format": form}, "response_format.json_schema.schema"),
        ("/v1/responses", items | regex, "structured_outputs.regex"),
        (
            "/v1/responses",
            items | {"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}},
            "text.format.schema",
        ),
        (
            "/v1/responses",
            items | {"tools": [{"type": "function"} | tool], "tool_choice": "required"},
            "tools.0.parameters",
        ),
        (
            "/v1/messages",
            chat | {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
            "output_config.format.schema",
        ),
        (
            "/v1/messages",
            chat | {"tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "any"}},
            "tools.0.input_schema",
        ),
    ]


@pytest.mark.slow
def test_a_grammar_bomb_is_refused_on_every_route_while_others_are_answered(gateway: Gateway) -> None:
    model, attacker, neighbour = gateway.base_name(), key_of(gateway, "attacker"), key_of(gateway, "neighbour")
    before, over = refused_so_far(gateway), threading.Event()
    answers: list[int] = []

    def chat() -> None:
        body = {"model": model, "messages": ASKED, "max_tokens": 8}
        while not (over.is_set() and answers):
            answers.append(post(gateway, neighbour, "/v1/chat/completions", body).status_code)

    beside = threading.Thread(target=chat)
    beside.start()
    try:
        attacks = attacks_on_every_route(model)
        for path, body, field in attacks:
            answer = post(gateway, attacker, path, body)
            assert answer.status_code == 400, f"{path} {field}: {answer.text}"
            error = answer.json()["error"]
            assert f"`{field}" in error["message"], path
            if path != "/v1/messages":  # Anthropic's errors have a type and a message
                assert error["code"] == "grammar_too_complex", path
                assert error["param"] == field, path
    finally:
        over.set()
        beside.join()
    assert answers
    assert set(answers) == {200}
    assert refused_so_far(gateway) - before == len(attacks)
    # nothing of it has reached the engine's one queue of grammars
    choice = {"model": model, "messages": ASKED, "max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}}
    answer = post(gateway, neighbour, "/v1/chat/completions", choice)
    assert answer.json()["choices"][0]["message"]["content"] in ("yes", "no")


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"regex": r"[A-Z]{2}-\d{4}"}, r"[A-Z]{2}-\d{4}"),
        ({"regex": r"(\d{1,3}\.){3}\d{1,3}"}, r"(\d{1,3}\.){3}\d{1,3}"),
        ({"choice": ["sent", "lost"]}, "sent|lost"),
        ({"grammar": 'root ::= state " " [0-9]{3}\nstate ::= "sent" | "lost"\n'}, r"(sent|lost) \d{3}"),
        ({"grammar": 'start: state " " /[0-9]{3}/\nstate: "sent" | "lost"\n'}, r"(sent|lost) \d{3}"),
        (
            {"structural_tag": json.dumps({"type": "structural_tag", "format": {"type": "regex", "pattern": "a{3}"}})},
            "a{3}",
        ),
        (
            {"json": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}},
            # JSON may have blanks anywhere, of which a small model can write more than the answer has room for
            r"\[\s*([12]\s*(,\s*([12]\s*(\]\s*)?)?)?)?",
        ),
    ],
)
def test_each_kind_of_structured_output_is_obeyed(gateway: Gateway, outputs: dict[str, Any], pattern: str) -> None:
    body = {"model": gateway.base_name(), "messages": ASKED, "max_tokens": 60, "structured_outputs": outputs}
    answer = post(gateway, gateway.key, "/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    content = answer.json()["choices"][0]["message"]["content"]
    assert re.fullmatch(pattern, content, re.ASCII), content


def is_order(text: str) -> bool:
    """Whether it is an order, or the beginning of one whose blanks have used up its tokens."""
    crowded = sum(map(str.isspace, text)) >= MANY_BLANKS
    return ORDERED.fullmatch(text, partial=crowded) is not None


@pytest.mark.slow
def test_a_schema_is_obeyed_on_every_route(gateway: Gateway) -> None:
    model = gateway.base_name()
    form = {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER}}

    def answered(path: str, **more: Any) -> Any:
        answer = post(gateway, gateway.key, path, {"model": model, "temperature": 0, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    chat = answered("/v1/chat/completions", messages=ASKED, max_tokens=120, response_format=form)
    assert is_order(chat["choices"][0]["message"]["content"])
    text = answered("/v1/completions", prompt="An order as JSON:", max_tokens=120, response_format=form)
    assert is_order(text["choices"][0]["text"])
    config = {"format": {"type": "json_schema", "name": "order", "schema": ORDER}}
    response = answered("/v1/responses", input="Hello", max_output_tokens=120, text=config)
    assert is_order(response["output"][-1]["content"][0]["text"])
    form = {"format": {"type": "json_schema", "schema": ORDER}}
    message = answered("/v1/messages", messages=ASKED, max_tokens=120, output_config=form)
    assert is_order(message["content"][0]["text"])
    tool = {"type": "function", "function": {"name": "track", "parameters": ORDER, "strict": True}}
    named = {"type": "function", "function": {"name": "track"}}
    called = answered("/v1/chat/completions", messages=ASKED, max_tokens=120, tools=[tool], tool_choice=named)
    assert is_order(called["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])


def test_an_invalid_grammar_is_a_400(gateway: Gateway) -> None:
    body = {"model": gateway.base_name(), "messages": ASKED, "max_tokens": 8, "structured_outputs": {"regex": "(a"}}
    answer = post(gateway, gateway.key, "/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_grammar"
    assert "parenthesis" in answer.json()["error"]["message"]
