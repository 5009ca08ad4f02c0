"""OpenAI's chat format: one JSON object per line, `{"messages": [{"role", "content"}, …]}`.

Strict: any other line is refused with its number and the reason, and one such line refuses the file. An assistant
message may have `"weight": 0`, which makes it context that is not trained on. Other formats (`trainer.data.formats`)
are converted into this one, line by line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard, get_args

from trainer.errors import DataInvalid, DataTooSmall, Problem

Role = Literal["system", "user", "assistant"]

_ROLES: Final = get_args(Role)
GROUP: Final = "group"
"""The key, in every format, that names what a line belongs to."""
MAX_GROUP_CHARS: Final = 200


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


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data file's examples and the SHA-256 of its bytes."""

    name: str
    sha256: str
    examples: tuple[Example, ...]


def read_chat(path: Path, *, min_examples: int = 1) -> Dataset:
    """Read a file of chat examples.

    Raises:
        DataInvalid: Lists every invalid line.
        DataTooSmall: Fewer than `min_examples`.
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    examples = parse_chat(content)
    if len(examples) < min_examples:
        raise DataTooSmall(f"{path.name} has {len(examples)} examples; at least {min_examples} are needed.")
    return Dataset(name=path.name, sha256=hashlib.sha256(content).hexdigest(), examples=examples)


def parse_chat(content: bytes) -> tuple[Example, ...]:
    """The examples in `content`, UTF-8 with or without a byte-order mark. Raises DataInvalid."""
    return parse_lines(content, lambda value: value)


def parse_lines(content: bytes, to_chat: Callable[[object], object]) -> tuple[Example, ...]:
    """The examples in `content`, each line converted to the chat format by `to_chat`, which may raise LineRefused.

    Raises:
        DataInvalid: Lists every invalid line.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    for number, line in enumerate(split_lines(content), start=1):
        try:
            value = decode_line(line)
            examples.append(Example(number, _messages(to_chat(value)), _group(value)))
        except LineRefused as refusal:
            problems.append(Problem(number, refusal.reason))
    if problems:
        raise DataInvalid(problems)
    return tuple(examples)


def split_lines(content: bytes) -> list[bytes]:
    """The lines of a file, without a byte-order mark and without the empty line after the last newline."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1].strip() == b"":
        lines.pop()
    return lines


class LineRefused(Exception):
    """A line is invalid for this reason; caught within `trainer.data`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_line(line: bytes) -> object:
    """A line's JSON value. Raises LineRefused."""
    if not line.strip():
        raise LineRefused("the line is empty")
    try:
        return json.loads(line.decode(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise LineRefused(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise LineRefused(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise LineRefused("nested too deeply") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value_of: dict[str, Any] = {}
    for key, value in pairs:
        if key in value_of:
            raise LineRefused(f"duplicate key {key!r}")
        value_of[key] = value
    return value_of


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, dict):
        raise LineRefused('not an object: expected {"messages": [...]}')
    check_keys(value, {"messages", GROUP}, "")
    items = value.get("messages")
    if not isinstance(items, list) or not items:
        raise LineRefused("messages must be a non-empty list")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(items))
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise LineRefused(f"messages[{index}]: only the first message may be a system message")
    if messages[-1].role != "assistant":
        raise LineRefused(f"the last message has role {messages[-1].role}; it must be assistant")
    if not any(message.trained for message in messages):
        raise LineRefused("every assistant message has weight 0, so there is nothing to train on")
    return messages


def _group(value: object) -> str | None:
    """The line's `group`: a string or an integer."""
    group = value.get(GROUP) if isinstance(value, dict) else None
    if group is None:
        return None
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise LineRefused(f"{GROUP} must be a string or an integer, such as a customer's or a ticket's number")
    text = str(group).strip()
    if not text or len(text) > MAX_GROUP_CHARS:
        raise LineRefused(f"{GROUP} must have between 1 and {MAX_GROUP_CHARS} characters")
    return text


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise LineRefused(f"{where} is not an object")
    check_keys(value, {"role", "content", "weight"}, f"{where}.")
    role, content, weight = value.get("role"), value.get("content"), value.get("weight", 1)
    if not _is_role(role):
        raise LineRefused(f"{where}.role is {role!r}; must be one of {', '.join(_ROLES)}")
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
    return value in _ROLES


def check_keys(value: dict[str, Any], known: set[str], prefix: str) -> None:
    """Raise LineRefused if an object has a key that is not in `known`."""
    for key in value:
        if key not in known:
            raise LineRefused(f"{prefix}{key} is not supported; allowed keys: {', '.join(sorted(known))}")
