"""What of a request ends as a grammar in the engine, read from the body as the engine gets it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from service.errors import BadRequest

Kind = Literal["json", "regex", "choice", "grammar", "structural_tag"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A structured output's specification in a request.

    Attributes:
        kind: What it is written in.
        value: As it stands in the request: a string, or JSON's objects and arrays.
        path: The field that it stands in, for messages.
    """

    kind: Kind
    value: Any
    path: str

    @property
    def text(self) -> str:
        """The specification as the engine compiles it; `choice` as a JSON array.

        Raises:
            BadRequest: It cannot be written as UTF-8 or as JSON.
        """
        return json_text(self.value, self.path)

    @property
    def key(self) -> bytes:
        """A key that is equal for specifications that compile to the same grammar."""
        return hashlib.blake2b(f"{self.kind} {self.text}".encode(), digest_size=16).digest()


def json_text(value: Any, path: str) -> str:
    """A string unchanged, any other value as JSON.

    Raises:
        BadRequest: It has half a character, a number beyond 64 bits, or too many levels.
    """
    try:
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        text.encode()
    except (TypeError, UnicodeEncodeError):  # orjson's own error is a TypeError
        raise BadRequest(
            f"`{path}` has a value that JSON cannot hold: text that is not Unicode, a number beyond 64 bits, or more "
            "than 250 levels",
            param=path[:200],
            code="invalid_grammar",
        ) from None
    return text


_FIELDS: Final = frozenset({"structured_outputs", "response_format", "text", "output_config", "tools"})
"""Where a specification can stand; a request that has none of them has none."""


def specs_of(body: Mapping[str, Any]) -> list[Spec]:
    """Every specification in a request's body that the engine would compile, in whatever field.

    All dialects are read at once: none has a field that means something else in another.
    """
    if _FIELDS.isdisjoint(body):
        return []
    specs = list(_structured_outputs(body.get("structured_outputs")))
    specs += _response_format(body.get("response_format"))
    specs += _named_schema(body.get("text"), "text")  # Responses
    specs += _named_schema(body.get("output_config"), "output_config")  # Messages
    if _may_constrain_tools(body):
        specs += _tools(body["tools"])
    return specs


def _structured_outputs(value: Mapping[str, Any] | None) -> Iterator[Spec]:
    kinds: tuple[Kind, ...] = ("json", "regex", "choice", "grammar", "structural_tag")
    for kind in kinds:
        if value and value.get(kind) is not None:
            yield Spec(kind, value[kind], f"structured_outputs.{kind}")
    if value and value.get("whitespace_pattern") is not None:
        yield Spec("regex", value["whitespace_pattern"], "structured_outputs.whitespace_pattern")


def _response_format(value: Mapping[str, Any] | None) -> Iterator[Spec]:
    if not value:
        return
    if value.get("type") == "structural_tag":
        yield Spec("structural_tag", value, "response_format")
    elif value.get("type") == "json_schema":
        schema = (value.get("json_schema") or {}).get("schema")
        if schema is not None:
            yield Spec("json", schema, "response_format.json_schema.schema")


def _named_schema(value: Any, path: str) -> Iterator[Spec]:
    form = value.get("format") if isinstance(value, dict) else None
    if isinstance(form, dict) and form.get("schema") is not None:
        yield Spec("json", form["schema"], f"{path}.format.schema")


def _may_constrain_tools(body: Mapping[str, Any]) -> bool:
    """Whether the engine decodes calls by the tools' schemas: where a call is forced, where there may be one call only,
    or where a tool is strict."""
    choice, tools = body.get("tool_choice"), body.get("tools")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not tools or kind == "none":
        return False
    single = body.get("parallel_tool_calls") is False
    if isinstance(choice, dict):
        single = single or bool(choice.get("disable_parallel_tool_use"))
    return kind not in (None, "auto") or single or any(_function(tool).get("strict") for tool in tools)


def _tools(tools: list[dict[str, Any]]) -> Iterator[Spec]:
    for index, tool in enumerate(tools):
        inner = ".function" if "function" in tool else ""
        function = _function(tool)
        for name in ("parameters", "input_schema"):
            if function.get(name) is not None:
                yield Spec("json", function[name], f"tools.{index}{inner}.{name}")


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """Chat completions put what a tool is a level deeper than the others."""
    inner = tool.get("function")
    return inner if isinstance(inner, dict) else tool
