"""Tools: what a declared function and an earlier call look like, and how a forced call is decoded.

vLLM decodes the arguments of a call by the function's schema only where the function says `strict`. Without it a
forced call may carry any JSON, a bare string for one, which no client expects. So a call that the request forces is
made strict here: the schemas stay in the request's own tools, where the engine takes them from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from service.errors import BadRequest
from service.http.checks import MAX_DEPTH, invalid_value, mapping
from service.http.json_text import excess_of

MAX_TOOL_NAME_CHARS = 128
_NAME = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_TOOL_NAME_CHARS}}}")
"""A call's name is copied into the grammar that the engine decodes by: a quote in it would end the JSON string."""
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_name(value: Any, path: str) -> None:
    """A function's name: the characters that OpenAI and Anthropic allow, and dots and colons."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise invalid_value(
            path, value, f"1 to {MAX_TOOL_NAME_CHARS} letters, digits, underscores, dashes, dots or colons (ASCII)"
        )


def parameters_schema(value: Any, path: str) -> None:
    """The JSON schema of a function's arguments, an object; `{}` means no schema."""
    mapping(value, path)
    kind = value.get("type", "object")
    if kind != "object":
        raise invalid_value(f"{path}.type", kind, "'object', because a function's arguments are an object")


def tool_call(value: Any, path: str) -> None:
    """A tool call in an earlier answer of the assistant."""
    mapping(value, path)
    if value.get("type", "function") != "function":
        raise invalid_value(f"{path}.type", value["type"], "'function'")
    function = value.get("function")
    mapping(function, f"{path}.function")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise invalid_value(f"{path}.function.name", name, "a string")
    if isinstance(arguments, str):
        call_arguments(arguments, f"{path}.function.arguments")
    elif arguments is not None and not isinstance(arguments, dict):
        raise invalid_value(f"{path}.function.arguments", arguments, "a string of JSON")


def bound_arguments(sent: Iterable[Any], path: str) -> None:
    """Bound the arguments of all earlier tool calls of a request together, before anything parses them: for the bounds
    of its body each is one string, whatever is in it.

    Args:
        sent: What stands in the calls' place of arguments; what is no string is left out.

    Raises:
        BadRequest: They have more values than a body may have.
    """
    excess = excess_of(*(arguments.encode() for arguments in sent if isinstance(arguments, str)))
    if excess is not None:
        raise BadRequest(f"the arguments of all tool calls in `{path}` must have at most {excess}", param=path)


def call_arguments(value: Any, path: str) -> None:
    """The arguments of an earlier tool call, as a string.

    The engine parses them for the chat template. What is no JSON is allowed, since models write that, and conversations
    go on: the engine takes it for an empty object. What would stop its parser or its tokenizer is not.

    Raises:
        BadRequest: They are no string, are nested deeper than MAX_DEPTH, or hold half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise invalid_value(path, value, "a string of JSON")
    if value.count("[") + value.count("{") > MAX_DEPTH and _nested_deeper(value, MAX_DEPTH):
        raise BadRequest(f"`{path}` is nested deeper than {MAX_DEPTH} levels", param=path)
    if "\\u" in value and _holds_lone_surrogate(value):
        raise BadRequest(f"`{path}` contains an unpaired surrogate (\\ud800 to \\udfff)", param=path)


_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKET = re.compile(r"[^][{}]++")
_OPENING = np.frombuffer(b"[{", np.uint8)


def _nested_deeper(text: str, levels: int) -> bool:
    """Whether a parser of JSON would go deeper than ``levels`` into ``text``, which need not be JSON.

    Without a loop over the characters: a text may have megabytes.
    """
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text)).encode()
    opens = np.isin(np.frombuffer(brackets, np.uint8), _OPENING)
    return bool(np.cumsum(np.where(opens, 1, -1)).max(initial=0) > levels)


def _holds_lone_surrogate(text: str) -> bool:
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except ValueError:
        return False  # no JSON: the engine does not parse it either
    return False


def forced_tools(declared: Iterable[dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    """The tools that a forced call may use: the one of ``declared`` called ``name``, or all if it is None.

    Raises:
        BadRequest: There is none.
    """
    tools = list(declared)
    if not tools:
        raise BadRequest("`tool_choice` requires a tool call, but `tools` is missing or empty", param="tools")
    named = [tool for tool in tools if name is None or tool["name"] == name]
    if not named:
        raise BadRequest(f"`tool_choice` names {name!r}, which is not in `tools`", param="tool_choice")
    return named


def make_strict(function: dict[str, Any], schema_field: str) -> None:
    """Constrain a call's arguments to the schema in ``schema_field``; changes the function in place.

    A function without a schema takes no arguments, as with OpenAI.
    """
    schema = function.get(schema_field)
    function[schema_field] = dict(_NO_PARAMETERS) if schema is None else {"type": "object", **schema}
    function["strict"] = True
