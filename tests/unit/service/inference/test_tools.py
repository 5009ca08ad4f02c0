"""Tools: what may be declared, what an earlier call may hold, and that a forced call is decoded by its schema."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest

from service.errors import BadRequest
from service.inference.tools import call_arguments
from tests.unit.service.inference.fakes import Answer, World, answer_of

SCHEMA = {"properties": {"order": {"type": "string"}}, "required": ["order"]}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "voice", "messages": [{"role": "user", "content": "Hello"}]},
    RESPONSES: {"model": "voice", "input": "Hello"},
    MESSAGES: {"model": "voice", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5},
}


def tool(path: str, name: str, schema: Any = None) -> dict[str, Any]:
    """A function as the route's requests declare it; without a schema where there is none."""
    field = "input_schema" if path == MESSAGES else "parameters"
    function = {"name": name} | ({} if schema is None else {field: schema})
    if path == CHAT:
        return {"type": "function", "function": function}
    return {"type": "function", **function} if path == RESPONSES else function


def functions(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [tool["function"] if path == CHAT else tool for tool in body["tools"]]


async def ask(path: str, **more: Any) -> tuple[World, Answer]:
    world = World()
    world.engine.chunks = [answer_of(path)]
    return world, await world.ask(path, BODIES[path] | more)


ANY = {CHAT: "required", RESPONSES: "required", MESSAGES: {"type": "any"}}
NAMED: dict[str, Any] = {
    CHAT: {"type": "function", "function": {"name": "track"}},
    RESPONSES: {"type": "function", "name": "track"},
    MESSAGES: {"type": "tool", "name": "track"},
}


@pytest.mark.parametrize("path", BODIES)
async def test_any_forced_call_is_decoded_by_the_tools_schemas(path: str) -> None:
    tools = [tool(path, "track", SCHEMA), tool(path, "cancel", {**SCHEMA, "type": "object"})]
    world, answer = await ask(path, tools=tools, tool_choice=ANY[path])
    assert answer.status == 200, answer.body
    sent = functions(path, world.engine.last.body)
    assert [function["strict"] for function in sent] == [True, True]
    field = "input_schema" if path == MESSAGES else "parameters"
    assert [function[field] for function in sent] == [{**SCHEMA, "type": "object"}] * 2


@pytest.mark.parametrize("path", BODIES)
async def test_a_named_call_is_decoded_by_its_schema_and_leaves_the_other_tools(path: str) -> None:
    tools = [tool(path, "track", SCHEMA), tool(path, "cancel", SCHEMA)]
    world, answer = await ask(path, tools=tools, tool_choice=NAMED[path])
    assert answer.status == 200, answer.body
    assert [function.get("strict") for function in functions(path, world.engine.last.body)] == [True, None]


@pytest.mark.parametrize("path", BODIES)
async def test_strict_false_does_not_free_a_forced_call(path: str) -> None:
    given = tool(path, "track", SCHEMA)
    (given["function"] if path == CHAT else given)["strict"] = False
    world, _ = await ask(path, tools=[given], tool_choice=ANY[path])
    assert functions(path, world.engine.last.body)[0]["strict"] is True


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_forced_function_without_a_schema_takes_no_arguments(path: str) -> None:
    world, _ = await ask(path, tools=[tool(path, "track")], tool_choice=ANY[path])
    [sent] = functions(path, world.engine.last.body)
    assert sent["parameters"] == {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize("path", BODIES)
async def test_a_call_that_is_not_forced_stays_as_it_was(path: str) -> None:
    choice = {"type": "auto"} if path == MESSAGES else "auto"
    tools = [tool(path, "track", SCHEMA)]
    world, _ = await ask(path, tools=tools, tool_choice=choice)
    assert world.engine.last.body["tools"] == tools


async def test_a_forced_custom_tool_of_responses_keeps_its_form() -> None:
    custom = {"type": "custom", "name": "shell"}
    world, answer = await ask(RESPONSES, tools=[custom], tool_choice={"type": "custom", "name": "shell"})
    assert answer.status == 200, answer.body
    assert world.engine.last.body["tools"] == [custom]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("tools", "param"), [([], "tools"), (["cancel"], "tool_choice")])
async def test_a_forced_call_of_nothing_names_what_is_missing(path: str, tools: list[str], param: str) -> None:
    declared = [tool(path, name, SCHEMA) for name in tools]
    world, answer = await ask(path, tools=declared, tool_choice=NAMED[path])
    assert (answer.status, answer.error["param"], world.engine.asked) == (400, param, [])


async def test_a_choice_of_a_function_without_a_name_is_refused() -> None:
    _, answer = await ask(CHAT, tools=[tool(CHAT, "track")], tool_choice={"type": "function"})
    assert (answer.status, answer.error["param"]) == (400, "tool_choice.function")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ('a"b', SCHEMA),
        ("a\nb", SCHEMA),
        ("", SCHEMA),
        ("a" * 129, SCHEMA),
        ("é", SCHEMA),
        ("f", {"type": "string"}),
        ("f", {"type": ["object", "null"]}),
        ("f", {"type": None}),
    ],
)
async def test_a_tool_that_no_call_can_be_decoded_by_is_refused(path: str, name: str, schema: Any) -> None:
    world, answer = await ask(path, tools=[tool(path, name, schema)])
    assert (answer.status, world.engine.asked) == (400, [])
    assert answer.error["param"].startswith("tools.0")


# calls in earlier answers


def called(**function: Any) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "track", "arguments": "{}", **function}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


DEEP = ("[" * 3000, "[" * 3000 + "]" * 3000, '{"a":' * 65 + "1" + "}" * 65, '"' + "[" * 65 + '"' + "[" * 65)
SOUND = (
    "",
    "{}",
    '{"order": "tw-1"}',
    '"order_tw-1"',
    '{"order": ',
    "not JSON",
    '"' + "[" * 3000 + '"',
    '{"a":' * 64 + "1" + "}" * 64,
    "[]" * 3000,
    '"\\"' + "[" * 100 + '\\""',
    '{"face": "\\ud83d\\ude00", "e": "\\u00e9"}',
    '{"broken": "\\ud83d',
)


@pytest.mark.parametrize("arguments", DEEP, ids=range(len(DEEP)))
async def test_arguments_that_would_break_the_engines_parser_are_refused(arguments: str) -> None:
    talk = [*BODIES[CHAT]["messages"], called(arguments=arguments)]
    world, answer = await ask(CHAT, messages=talk)
    assert (answer.status, world.engine.asked, world.suspects) == (400, [], [])
    assert answer.error["param"] == "messages.1.tool_calls.0.function.arguments"
    item = {"type": "function_call", "call_id": "c", "name": "track", "arguments": arguments}
    world, answer = await ask(RESPONSES, input=[item])
    assert (answer.status, answer.error["param"], world.engine.asked) == (400, "input.0.arguments", [])


@pytest.mark.parametrize("arguments", SOUND, ids=range(len(SOUND)))
async def test_arguments_that_a_model_may_have_written_pass(arguments: str) -> None:
    world, answer = await ask(CHAT, messages=[*BODIES[CHAT]["messages"], called(arguments=arguments)])
    assert answer.status == 200, answer.body
    assert world.engine.last.body["messages"][-1]["tool_calls"][0]["function"]["arguments"] == arguments


async def test_arguments_that_would_take_long_to_parse_are_refused_before_anything_parses_them() -> None:
    long = '["\\u0041",' + "[]," * 2_500_000 + "1]"
    half = "[" + "1," * 200_000 + "1]"
    for arguments in ([long], [half, half]):
        calls = [called(arguments=text)["tool_calls"][0] for text in arguments]
        talk = [*BODIES[CHAT]["messages"], {"role": "assistant", "content": None, "tool_calls": calls}]
        began = time.process_time()
        world, answer = await ask(CHAT, messages=talk)
        assert (answer.status, answer.error["param"], world.engine.asked) == (400, "messages", [])
        items = [{"type": "function_call", "call_id": "c", "name": "f", "arguments": text} for text in arguments]
        world, answer = await ask(RESPONSES, input=items)
        assert (answer.status, answer.error["param"], world.engine.asked) == (400, "input", [])
        assert time.process_time() - began < 2, "to parse the first takes four seconds"
    text = json.dumps({"q": "[,:{" * 100_000})
    _, answer = await ask(CHAT, messages=[*BODIES[CHAT]["messages"], called(arguments=text)])
    assert answer.error["code"] == "context_length_exceeded", "what is in a text is no value"


@pytest.mark.parametrize("half", ["\\ud800", "\\udfff", "\\ude00\\ud83d"])
def test_half_of_a_surrogate_pair_is_refused(half: str) -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        call_arguments(f'{{"a": "{half}"}}', "arguments")


@pytest.mark.parametrize(
    ("call", "where"),
    [
        ("track", ""),
        ({}, ".function"),
        ({"type": "custom", "custom": {}}, ".type"),
        ({"function": "track"}, ".function"),
        ({"function": {}}, ".function.name"),
        ({"function": {"name": 3}}, ".function.name"),
        ({"function": {"name": "track", "arguments": 3}}, ".function.arguments"),
        ({"function": {"name": "track", "arguments": ["a"]}}, ".function.arguments"),
    ],
)
async def test_a_call_that_is_none_names_what_is_wrong(call: Any, where: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    world, answer = await ask(CHAT, messages=[message])
    assert (answer.status, world.engine.asked) == (400, [])
    assert answer.error["param"] == f"messages.0.tool_calls.0{where}"


def test_a_long_text_of_brackets_is_looked_at_without_a_loop_over_them() -> None:
    """Linear in the length: eight times the text may not cost much more than eight times as much."""
    call_arguments("[]" * 200_000, "arguments")
    with pytest.raises(BadRequest):
        call_arguments(orjson.dumps("x").decode() * 100_000 + "[" * 65, "arguments")
