"""OpenAI's chat format: one JSON object per line, `{"messages": [{"role", "content"}, …]}`.

An assistant message may have `"weight": 0`, which makes it context that is not trained on. Other formats
(`adapters.dataset.formats`) are converted into this one, line by line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard, get_args

from adapters.dataset.lines import LineRefused, show, unknown_keys

Role = Literal["system", "user", "assistant"]

_ROLES: Final = get_args(Role)
GROUP: Final = "group"
"""The key, in every format, that names what a line belongs to."""
MAX_GROUP_CHARS: Final = 200
_MESSAGE_KEYS: Final = ("role", "content", "weight")
_UNSUPPORTED: Final = frozenset({"tool_calls", "function_call"})


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `trained` is true for assistant messages that count in the loss."""

    role: Role
    content: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation that ends with an assistant message.

    Attributes:
        line: Its line in the file, from 1.
        group: What it belongs to according to its author, such as a customer or a ticket; None if nothing is named.
            Examples of one group stay on one side of a split, and count as one when a version is judged.
    """

    line: int
    messages: tuple[Message, ...]
    group: str | None = None


def read_group(value: object) -> str | None:
    """The value of a line's `group`: a string or an integer. Raises LineRefused."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise LineRefused(f"{GROUP} must be a string or an integer, such as a customer's or a ticket's number")
    text = str(value).strip()
    if not text or len(text) > MAX_GROUP_CHARS:
        raise LineRefused(f"{GROUP} must have between 1 and {MAX_GROUP_CHARS} characters")
    return text


def read_messages(items: object, ignored: set[str]) -> tuple[Message, ...]:
    """The messages of one example.

    Args:
        items: The value of `messages`.
        ignored: Gets the keys that are not used, such as ``messages[].name``.

    Raises:
        LineRefused: They are not a conversation that can be trained on.
    """
    if not isinstance(items, list) or not items:
        raise LineRefused("messages must be a non-empty list")
    messages = tuple(_messages(items, ignored))
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise LineRefused(f"messages[{index}]: only the first message may be a system message")
    if messages[-1].role != "assistant":
        raise LineRefused(f"the last message has role {messages[-1].role}; it must be assistant")
    if not any(message.trained for message in messages):
        raise LineRefused("every assistant message has weight 0, so there is nothing to train on")
    return messages


def _messages(items: list[Any], ignored: set[str]) -> Iterator[Message]:
    for index, item in enumerate(items):
        where = f"messages[{index}]"
        if not isinstance(item, dict):
            raise LineRefused(f"{where} is not an object")
        unknown = unknown_keys(item, _MESSAGE_KEYS, _UNSUPPORTED, f"{where}.")
        if unknown:
            ignored.update(f"messages[].{key}" for key in unknown)
        yield _message(item, where)


def _message(value: dict[str, Any], where: str) -> Message:
    role, content, weight = value.get("role"), value.get("content"), value.get("weight", 1)
    if not _is_role(role):
        raise LineRefused(f"{where}.role is {show(role)}; must be one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise LineRefused(f"{where}.content must be a string")
    if role != "system" and not content.strip():
        raise LineRefused(f"{where}.content is empty")
    if not content.isprintable() and any(0xD800 <= ord(character) <= 0xDFFF for character in content):
        raise LineRefused(f"{where}.content contains an unpaired surrogate")
    if "weight" in value and role != "assistant":
        raise LineRefused(f"{where}.weight is allowed for assistant messages only")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise LineRefused(f"{where}.weight must be 0 or 1")
    return Message(role=role, content=content, trained=role == "assistant" and weight == 1)


def _is_role(value: object) -> TypeGuard[Role]:
    return isinstance(value, str) and value in _ROLES
