"""What a chat message may hold. Nothing in it may make the engine open a URL or a file: media come as `data:` only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from service.errors import BadRequest, FieldRefused, UnknownField
from service.http.checks import describe, invalid_value, list_of, text, with_schema
from service.inference.tools import bound_arguments, tool_call

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
MAX_MESSAGES = 4096
FIELDS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content"}
)
STRINGS = frozenset({"name", "tool_call_id", "refusal", "reasoning", "reasoning_content"})
REFUSED = {
    "audio": "the model does not produce audio",
    "function_call": "it is deprecated; use `tool_calls`",
    "tools": "tools belong to the request",
}
DROPPED = ("annotations", "prompt_cache_breakpoint", "cache_control")
"""Fields of a message or part that other servers give or take and that say nothing here."""
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
URL_PARTS = ("image_url", "audio_url", "video_url")


def check_messages(messages: Any, path: str) -> None:
    """Check a conversation and drop null and empty parts; changes the messages in place.

    Raises:
        BadRequest: A message or one of its parts is not well formed.
        FieldRefused: A part names a URL or a file.
    """
    if not isinstance(messages, list):
        raise invalid_value(path, messages, "an array")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"`{path}` has {len(messages)} entries; 1 to {MAX_MESSAGES} are allowed", param=path)
    unusual = [(index, message) for index, message in enumerate(messages) if not _is_plain(message)]
    if not unusual:
        return
    bound_arguments(_arguments(message for _, message in unusual), path)
    for index, message in unusual:
        _check_message(message, f"{path}.{index}")


def _is_plain(message: Any) -> bool:
    """Whether a message has a known role and a text, and nothing else: then it is valid, and nothing is dropped."""
    if not isinstance(message, dict) or len(message) != 2:
        return False
    role = message.get("role")
    return isinstance(message.get("content"), str) and isinstance(role, str) and role in ROLES


def _arguments(messages: Iterable[Any]) -> Iterator[Any]:
    """What earlier tool calls have as arguments, however malformed the rest is."""
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                yield function.get("arguments")


with_schema(
    check_messages,
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": {"type": "object", "properties": {"role": {"type": "string"}}, "required": ["role"]},
    },
)


def _check_message(message: Any, path: str) -> None:
    if not isinstance(message, dict):
        raise invalid_value(path, message, "an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid_value(f"{path}.role", role, "one of " + ", ".join(map(repr, sorted(ROLES))))
    for name in [n for n, value in message.items() if n not in FIELDS or (value is None and n != "content")]:
        value = message.pop(name)
        if value is None or name in DROPPED:
            continue
        if name in REFUSED:
            raise FieldRefused(f"`{path}.{name}` cannot be used: {REFUSED[name]}", param=f"{path}.{name}")
        raise UnknownField(f"a message has no field {describe(name)}", param=f"{path}.{name[:100]}")
    content = message.get("content")
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{path}.content.{index}")
    elif not isinstance(content, str) and content is not None:
        raise invalid_value(f"{path}.content", content, "a string, an array of parts or null")
    elif content is None and role != "assistant":
        raise invalid_value(f"{path}.content", content, "a string or an array of parts")
    if "tool_calls" in message:
        list_of(tool_call)(message["tool_calls"], f"{path}.tool_calls")
    for name in STRINGS & message.keys():
        text()(message[name], f"{path}.{name}")


def _check_part(part: Any, path: str) -> None:
    if not isinstance(part, dict):
        raise invalid_value(path, part, "an object")
    for name in DROPPED:
        part.pop(name, None)
    kind = part.get("type")
    if isinstance(kind, str) and kind in TEXT_PARTS:
        field = TEXT_PARTS[kind]
        if not isinstance(part.get(field), str):
            raise invalid_value(f"{path}.{field}", part.get(field), "a string")
        allowed = {"type", field}
    elif kind in URL_PARTS:
        _check_url(part.get(kind), f"{path}.{kind}")
        allowed = {"type", kind}
    elif kind == "input_audio":
        _check_audio(part.get("input_audio"), f"{path}.input_audio")
        allowed = {"type", "input_audio"}
    else:
        raise FieldRefused(
            f"`{path}.type` is {describe(kind)}; allowed are text, image_url, audio_url, video_url (each as `data:`) "
            "and input_audio",
            param=f"{path}.type",
        )
    # vLLM looks at a part's other keys in some cases: one that its type does not have is never passed
    for name in part.keys() - allowed:
        raise FieldRefused(f"a part of type {kind!r} has no field {describe(name)}", param=f"{path}.{name[:100]}")


def _check_url(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise invalid_value(path, value, "an object with `url`")
    url = value.get("url")
    if not isinstance(url, str) or not url.startswith("data:"):
        raise FieldRefused(
            f"`{path}.url` must be a `data:` URL; got {describe(url)}. The server does not fetch URLs or open files",
            param=f"{path}.url",
        )
    for name in value.keys() - {"url", "detail"}:
        raise FieldRefused(f"`{path}` has no field {describe(name)}", param=f"{path}.{name[:100]}")


def _check_audio(value: Any, path: str) -> None:
    if not isinstance(value, dict) or value.keys() != {"data", "format"}:
        raise invalid_value(path, value, "an object with `data` and `format`")
    kind = value["format"]
    if not isinstance(value["data"], str) or not isinstance(kind, str) or not kind.isalnum():
        raise invalid_value(f"{path}.format", kind, "a format's name, with `data` in base64")
