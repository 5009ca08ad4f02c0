"""OpenAI's chat format: one JSON object a line, `{"messages": [{"role", "content"}, …]}`.

Strict: a line that is not exactly that is refused with its number and the reason, and a file with one such line is
refused whole. An assistant message may carry `"weight": 0`, which keeps it as context and trains nothing on it.
Other formats (`trainer.data.formats`) are turned into this one, line by line.
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


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `trained` is true for an assistant's answer that the loss counts."""

    role: Role
    content: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation that ends with an assistant's answer; `line` (from 1) is where it stands in its file."""

    line: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data file's examples and the SHA-256 of its bytes."""

    name: str
    sha256: str
    examples: tuple[Example, ...]


def read_chat(path: Path, *, min_examples: int = 1) -> Dataset:
    """Read a file of chat examples.

    Raises:
        DataInvalid: With every line at fault.
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
    """The examples in `content`, each line made into the chat format by `to_chat`, which may raise Refusal.

    Raises:
        DataInvalid: With every line at fault.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    for number, line in enumerate(split_lines(content), start=1):
        try:
            examples.append(Example(number, _messages(to_chat(decoded(line)))))
        except Refusal as refusal:
            problems.append(Problem(number, refusal.reason))
    if problems:
        raise DataInvalid(problems)
    return tuple(examples)


def split_lines(content: bytes) -> list[bytes]:
    """The lines of a file, without a byte-order mark and the empty line after its last newline."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1].strip() == b"":
        lines.pop()
    return lines


class Refusal(Exception):
    """Why a line is refused; never leaves `trainer.data`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decoded(line: bytes) -> object:
    """A line's JSON value. Raises Refusal."""
    if not line.strip():
        raise Refusal("the line is empty")
    try:
        return json.loads(line.decode(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise Refusal(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise Refusal(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise Refusal("nested too deeply") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Refusal(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, dict):
        raise Refusal('not an object: expected {"messages": [...]}')
    refuse_other_keys(value, {"messages"}, "")
    items = value.get("messages")
    if not isinstance(items, list) or not items:
        raise Refusal("messages must be a list that is not empty")
    messages = tuple(_message(item, f"messages[{index}]") for index, item in enumerate(items))
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise Refusal(f"messages[{index}]: a system message may only be the first")
    if messages[-1].role != "assistant":
        raise Refusal(f"the last message is the {messages[-1].role}'s, not the assistant's")
    if not any(message.trained for message in messages):
        raise Refusal("every assistant message has weight 0: there is nothing to train on")
    return messages


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise Refusal(f"{where} is not an object")
    refuse_other_keys(value, {"role", "content", "weight"}, f"{where}.")
    role, content, weight = value.get("role"), value.get("content"), value.get("weight", 1)
    if not _is_role(role):
        raise Refusal(f"{where}.role is {role!r}, not one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise Refusal(f"{where}.content must be a text")
    if role != "system" and not content.strip():
        raise Refusal(f"{where}.content is empty")
    if not content.isprintable() and any(0xD800 <= ord(character) <= 0xDFFF for character in content):
        raise Refusal(f"{where}.content holds half a surrogate pair")
    if "weight" in value and role != "assistant":
        raise Refusal(f"{where}.weight: only an assistant message has one")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Refusal(f"{where}.weight must be 0 or 1")
    return Message(role=role, content=content, trained=role == "assistant" and weight == 1)


def _is_role(value: object) -> TypeGuard[Role]:
    return value in _ROLES


def refuse_other_keys(value: dict[str, Any], known: set[str], prefix: str) -> None:
    """Raise Refusal where an object has a key that is not `known`."""
    for key in value:
        if key not in known:
            raise Refusal(f"{prefix}{key} is not supported; known here: {', '.join(sorted(known))}")
