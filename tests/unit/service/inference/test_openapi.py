"""The data path's part of the OpenAPI document: made from the tables that check requests."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.config import Settings
from service.errors import HatrackError
from service.inference.fields import check_body
from service.inference.openapi import body_schema, inference_paths
from service.inference.routes import build_routes

ROUTES = build_routes(Settings(engine_device="cpu"))
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
USER: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
SAMPLES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": USER, "temperature": 0.2, "n": 2, "stop": ["a"], "logit_bias": {"5": 3}}),
    (CHAT, {"messages": USER, "grounding": {"vector_store_ids": ["vs_a"], "filters": None}}),
    (CHAT, {"messages": USER, "grounding": False, "tool_choice": "auto", "max_tokens": None}),
    (CHAT, {"messages": USER, "response_format": {"type": "json_object"}, "stream": True}),
    (MESSAGES, {"messages": USER, "max_tokens": 5, "system": "Be brief."}),
    (RESPONSES, {"input": "Hello", "reasoning": {"effort": "low"}, "store": False}),
    ("/v1/completions", {"prompt": [1, 2, 3]}),
    ("/v1/completions", {"prompt": ["a", "b"]}),
    ("/tokenize", {"prompt": "a"}),
    ("/detokenize", {"tokens": [1]}),
]
WRONG: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": USER, "temperature": 9}),
    (CHAT, {"messages": USER, "n": 0}),
    (CHAT, {"messages": USER, "colour": 1}),
    (CHAT, {"messages": USER, "cache_salt": "x"}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": USER, "grounding": True}),
    (MESSAGES, {"messages": USER}),
    (RESPONSES, {"input": 5}),
    ("/tokenize", {}),
]


def allowed_by_checks(path: str, body: dict[str, Any]) -> bool:
    route = ROUTES[path]
    try:
        check_body(dict(body), route.table, route.required, pass_unknown=False)
    except HatrackError:
        return False
    return True


def allowed_by_schema(path: str, body: dict[str, Any]) -> bool:
    return Draft202012Validator(body_schema(ROUTES[path])).is_valid({"model": "m", **body})


@pytest.mark.parametrize(("path", "body"), SAMPLES)
def test_what_the_checks_let_pass_the_schema_allows(path: str, body: dict[str, Any]) -> None:
    assert allowed_by_schema(path, body)
    assert allowed_by_checks(path, body)


@pytest.mark.parametrize(("path", "body"), WRONG)
def test_what_the_checks_refuse_the_schema_refuses(path: str, body: dict[str, Any]) -> None:
    assert not allowed_by_checks(path, body)
    assert not allowed_by_schema(path, body)


def test_every_field_that_a_route_takes_has_a_schema() -> None:
    for path, route in ROUTES.items():
        bare = [name for name, schema in body_schema(route)["properties"].items() if not schema]
        assert bare == [], path


def test_every_path_is_there() -> None:
    assert set(inference_paths(ROUTES, {})) == {*ROUTES, "/v1/models", "/v1/models/{model}"}
