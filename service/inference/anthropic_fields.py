"""The fields of `POST /v1/messages` and of `/v1/messages/count_tokens`, and what a message may hold."""

from __future__ import annotations

from typing import Any

from service.config import Settings
from service.errors import FieldRefused
from service.grounding.fields import check_grounding
from service.http.checks import (
    Check,
    boolean,
    by_type,
    either,
    fields,
    integer,
    list_of,
    mapping,
    number,
    one_of,
    shaped,
    sized,
    text,
    with_schema,
)
from service.inference.fields import GUARDED, KIB, MAX_TOOLS, FieldRule, Table, dropped, passed, refused
from service.inference.messages import MAX_MESSAGES
from service.inference.tools import parameters_schema, tool_name
from service.inference.values import MAX_HINT_CHARS, MAX_TOKEN_ID, template_kwargs

NO_FILES = "the server does not fetch URLs or open files"
BUILT_IN = "tools that run on the server are not supported"
MIN_THINKING_TOKENS = 1024
IGNORED_MEMBERS = ("cache_control", "citations")
"""Members of a block that ask for nothing here: the engine's prefix cache needs no marks, and cites nothing."""

_HINT = text(MAX_HINT_CHARS)


def _block(known: dict[str, Check], *required: str, ignored: tuple[str, ...] = ()) -> Check:
    return shaped({"type": text(), **known}, required=required, dropped=IGNORED_MEMBERS + ignored)


_TEXT = _block({"text": text()}, "text")
_IMAGE_SOURCE = by_type(
    {
        "base64": fields(
            {
                "type": text(),
                "media_type": one_of("image/jpeg", "image/png", "image/gif", "image/webp"),
                "data": text(),
            },
            required=("media_type", "data"),
        )
    },
    otherwise=NO_FILES,
)
_IMAGE = _block({"source": _IMAGE_SOURCE}, "source")
_RESULT = either(
    (str, text()), (list, list_of(by_type({"text": _TEXT, "image": _IMAGE}))), allowed="a string or an array of blocks"
)
_BLOCKS: dict[str, dict[str, Check]] = {
    "user": {
        "text": _TEXT,
        "image": _IMAGE,
        "tool_result": _block(
            {"tool_use_id": _HINT, "content": _RESULT, "is_error": boolean}, "tool_use_id", ignored=("toolset_name",)
        ),
    },
    "assistant": {
        "text": _TEXT,
        "tool_use": _block(
            {"id": _HINT, "name": text(256), "input": mapping}, "id", "name", ignored=("caller", "toolset_name")
        ),
        "thinking": _block({"thinking": text(), "signature": text()}, "thinking"),
        "redacted_thinking": _block({"data": text()}),
    },
    "system": {"text": _TEXT},
}


def _content(role: str) -> Check:
    blocks = list_of(by_type(_BLOCKS[role], otherwise=f"in a message with the role {role}; {BUILT_IN}, {NO_FILES}"))
    return either((str, text()), (list, blocks), allowed="a string or an array of blocks")


_MESSAGES = {
    role: shaped({"role": text(), "content": _content(role)}, required=("content",), dropped=IGNORED_MEMBERS)
    for role in _BLOCKS
}


def _message(value: Any, path: str) -> None:
    mapping(value, path)
    one_of(*_MESSAGES)(value.get("role"), f"{path}.role")
    _MESSAGES[value["role"]](value, path)


def check_conversation(value: Any, path: str) -> None:
    """Check Anthropic's messages and drop null and empty parts; changes them in place.

    Raises:
        BadRequest: A message or one of its blocks is not well formed.
        FieldRefused: A block names a URL, a file or a tool that runs on the server; or the last message is the
            assistant's: the engine would not go on with it but answer to it.
    """
    list_of(_message, min_items=1, max_items=MAX_MESSAGES)(value, path)
    last = len(value) - 1
    if value[last]["role"] == "assistant":
        raise FieldRefused(
            f"`{path}.{last}.role` is 'assistant': continuing a partial answer is not supported; "
            "end with a user message",
            param=f"{path}.{last}.role",
        )


with_schema(
    check_conversation,
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": {
            "type": "object",
            "properties": {"role": {"type": "string", "enum": list(_MESSAGES)}},
            "required": ["role", "content"],
        },
    },
)


_system = either((str, text()), (list, list_of(by_type({"text": _TEXT}))), allowed="a string or an array of texts")


def _tool(value: Any, path: str) -> None:
    known = {
        "type": text(),
        "name": tool_name,
        "description": text(),
        "input_schema": parameters_schema,
        "strict": boolean,
    }
    tool = shaped(known, required=("name", "input_schema"), dropped=("cache_control", "eager_input_streaming"))
    by_type({"custom": tool}, default="custom", otherwise=BUILT_IN)(value, path)
    value.pop("type", None)


_PARALLEL: dict[str, Check] = {"type": text(), "disable_parallel_tool_use": boolean}
_tool_choice = by_type(
    {
        "auto": shaped(_PARALLEL),
        "any": shaped(_PARALLEL),
        "none": shaped(_PARALLEL),
        "tool": shaped(_PARALLEL | {"name": text(256)}, required=("name",)),
    }
)


def _thinking(max_tokens: int | None) -> Check:
    tokens_bound = one_of("summarized", "omitted")
    return by_type(
        {
            "disabled": shaped({"type": text()}),
            "adaptive": shaped({"type": text(), "display": tokens_bound}),
            "enabled": shaped(
                {"type": text(), "budget_tokens": integer(MIN_THINKING_TOKENS, max_tokens), "display": tokens_bound},
                required=("budget_tokens",),
            ),
        }
    )


_output_config = shaped(
    {
        "effort": one_of("low", "medium", "high", "xhigh", "max"),
        "format": shaped({"type": one_of("json_schema"), "schema": mapping}, required=("type", "schema")),
    }
)


def _metadata(value: Any, path: str) -> None:
    fields({"user_id": _HINT})(value, path)


def _shared(settings: Settings) -> dict[str, FieldRule]:
    schema_bytes = int(settings.max_schema_kib * KIB)
    return (
        passed(
            messages=check_conversation,
            system=_system,
            tools=sized(schema_bytes, list_of(_tool, max_items=MAX_TOOLS)),
            tool_choice=_tool_choice,
            thinking=_thinking(settings.context),
            output_config=sized(schema_bytes, _output_config),
            chat_template_kwargs=template_kwargs,
        )
        | dropped(cache_control=mapping)
        | refused("there is only one speed", "speed", neutral=("standard",))
        | refused("context management is not supported", "context_management", "compaction", "thread")
        | refused(BUILT_IN, "mcp_servers", neutral=([],))
        | refused("workspaces and profiles exist only at Anthropic", "workspace_id", "user_profile_id")
        | refused("use `output_config`", "output_format")
        | GUARDED
    )


def messages_table(settings: Settings) -> Table:
    """The fields of `POST /v1/messages`."""
    stop = text(settings.max_stop_chars)
    return (
        _shared(settings)
        | passed(
            max_tokens=integer(1, settings.context),
            stream=boolean,
            stop_sequences=list_of(stop, max_items=settings.max_stops),
            temperature=number(0, 2),
            top_p=number(0, 1),
            top_k=integer(-1, MAX_TOKEN_ID),
            grounding=check_grounding,
        )
        | dropped(metadata=_metadata)
        | refused(BUILT_IN, "container")
        | refused("there is only one service tier", "service_tier", neutral=("auto", "standard_only"))
        | refused("the location of inference cannot be chosen", "inference_geo")
        | refused("fallback models are not supported", "fallbacks", "fallback_credit_token")
        | refused("billing is not supported", "billing_policy")
        | refused("diagnostics are not supported", "diagnostics")
        | refused("watermarking is not supported", "watermarking", neutral=(False,))
    )


def count_tokens_table(settings: Settings) -> Table:
    """The fields of `POST /v1/messages/count_tokens`."""
    return _shared(settings)
