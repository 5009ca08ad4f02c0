"""Tools in training data, as in OpenAI's chat format: the functions that an example declares, and the calls of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from adapters.dataset.lines import LineRefused, require_text, show

MAX_TOOLS: Final = 128
MAX_TOOL_NAME_CHARS: Final = 128
_NAME: Final = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_TOOL_NAME_CHARS}}}")
"""The same characters as the gateway allows."""
_NAMES: Final = f"1 to {MAX_TOOL_NAME_CHARS} letters, digits, underscores, dashes, dots or colons (ASCII)"

Tool = dict[str, Any]
"""A declared function as the engine hands it to the chat template: `{"type": "function", "function": {…}}`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function. ``arguments`` is the text of a JSON object; ``id`` is what a tool's message answers."""

    name: str
    arguments: str
    id: str | None = None

    def rendered(self) -> dict[str, Any]:
        """The call as the engine hands it to the chat template: with its arguments as an object."""
        function = {"name": self.name, "arguments": json.loads(self.arguments)}
        return {**({} if self.id is None else {"id": self.id}), "type": "function", "function": function}

    def sent(self) -> dict[str, Any]:
        """The call in a message of a request."""
        return {
            **({} if self.id is None else {"id": self.id}),
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Calls as one JSON text, `[{"name": …, "arguments": {…}}, …]`: what two answers are compared by."""
    return json.dumps(
        [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls], ensure_ascii=False
    )


def read_tools(value: object) -> tuple[Tool, ...]:
    """The value of a line's `tools`, with the keys that the engine hands to the chat template and no others.

    Raises LineRefused.
    """
    if value in (None, []):
        return ()
    if not isinstance(value, list):
        raise LineRefused("tools must be a list of functions")
    if len(value) > MAX_TOOLS:
        raise LineRefused(f"tools has {len(value)} entries; at most {MAX_TOOLS} are allowed")
    tools = tuple(_tool(item, f"tools[{index}]") for index, item in enumerate(value))
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise LineRefused(f"tools declares {show(next(name for name in names if names.count(name) > 1))} twice")
    return tools


def _tool(value: object, where: str) -> Tool:
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(value.get("function"), dict):
        raise LineRefused(
            f'{where} must be {{"type": "function", "function": {{"name", "description", "parameters"}}}}'
        )
    function = value["function"]
    name = _function_name(function.get("name"), f"{where}.function.name")
    description, parameters = function.get("description"), function.get("parameters")
    if description is not None and not isinstance(description, str):
        raise LineRefused(f"{where}.function.description must be a string")
    if parameters is not None and not (isinstance(parameters, dict) and parameters.get("type", "object") == "object"):
        raise LineRefused(f"{where}.function.parameters must be a JSON Schema of an object")
    # vLLM's FunctionDefinition: these keys in this order, null where they are absent; templates print the object
    rendered: dict[str, Any] = {"name": name, "description": description, "parameters": parameters}
    require_text(rendered, f"{where}.function")
    strict = function.get("strict")
    if isinstance(strict, bool):
        rendered["strict"] = strict
    return {"type": "function", "function": rendered}


def read_tool_calls(value: object, where: str) -> tuple[ToolCall, ...]:
    """The value of a message's `tool_calls`; empty if there are none. Raises LineRefused."""
    if value in (None, []):
        return ()
    if not isinstance(value, list):
        raise LineRefused(f"{where} must be a list of calls")
    calls = tuple(_tool_call(item, f"{where}[{index}]") for index, item in enumerate(value))
    ids = [call.id for call in calls if call.id is not None]
    if len(set(ids)) < len(ids):
        raise LineRefused(f"{where}: two calls have the same id")
    return calls


def _tool_call(value: object, where: str) -> ToolCall:
    if (
        not isinstance(value, dict)
        or value.get("type", "function") != "function"
        or not isinstance(value.get("function"), dict)
    ):
        raise LineRefused(f'{where} must be {{"id", "type": "function", "function": {{"name", "arguments"}}}}')
    function, call_id = value["function"], value.get("id")
    if call_id is not None and (not isinstance(call_id, str) or not call_id):
        raise LineRefused(f"{where}.id must be a non-empty string")
    require_text(call_id, f"{where}.id")
    name = _function_name(function.get("name"), f"{where}.function.name")
    return ToolCall(name, _arguments(function.get("arguments"), f"{where}.function.arguments"), call_id)


def _arguments(value: object, where: str) -> str:
    """The text of a JSON object. The engine would take anything else for `{}`, which must not be trained on."""
    if isinstance(value, dict):
        require_text(value, where)
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise LineRefused(f"{where} must be a string that holds a JSON object")
    try:
        parsed = json.loads(value)
        valid = isinstance(parsed, dict)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # an unpaired surrogate is a ValueError, too
        valid = False
    if not valid:
        raise LineRefused(f"{where} is {show(value)}; must be a string that holds a JSON object")
    return value


def _function_name(value: object, where: str) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise LineRefused(f"{where} is {show(value)}; must have {_NAMES}")
    return value
