"""The supported formats of training data, and the reader that every upload, check, job and evaluation uses.

    chat               {"messages": [{"role", "content"}, …], "tools": […]}          OpenAI
    preference         {"input": {"messages": […]}, "preferred_output": [{…}],
                        "non_preferred_output": [{…}]}                               OpenAI, for DPO
    prompt_completion  {"prompt", "completion"}                                      OpenAI's older one, TRL's
    alpaca             {"instruction", "input" (may be empty or absent), "output"}   Stanford Alpaca
    sharegpt           {"conversations": [{"from": "human"|"gpt"|…, "value"}, …]}    ShareGPT, Vicuna

A file has one format, that of its first line that has one. Other keys (ids, sources, dates) are ignored, and noted; a
key that looks like a typing error of a missing one makes its line invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from adapters.dataset import preference
from adapters.dataset.chat import FILTERS, GROUP, Example, read_belonging, read_messages
from adapters.dataset.lines import (
    MAX_KEYS_COMPARED,
    MAX_PROBLEMS,
    LineRefused,
    Problem,
    decode_line,
    show,
    similar_key,
    unknown_keys,
)
from adapters.dataset.tools import read_tools

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
MAX_NAMED_KEYS: Final = 20
"""Ignored keys that are noted by name; a file may have any number."""
MAX_KEY_CHARS: Final = 100
SHOWN_ROWS: Final = 20


class Format(StrEnum):
    """The format of a file's lines."""

    CHAT = "chat"
    PROMPT_COMPLETION = "prompt_completion"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    PREFERENCE = "preference"


FORMAT_KEYS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "messages": Format.CHAT,
        "prompt": Format.PROMPT_COMPLETION,
        "instruction": Format.ALPACA,
        "conversations": Format.SHAREGPT,
        "preferred_output": Format.PREFERENCE,
    }
)
"""Each line has exactly one of these keys."""
_KEY_OF: Final[Mapping[Format, str]] = MappingProxyType({kind: key for key, kind in FORMAT_KEYS.items()})
_KEYS: Final[Mapping[Format, tuple[str, ...]]] = MappingProxyType(
    {
        Format.CHAT: ("messages", "tools"),
        Format.PROMPT_COMPLETION: ("prompt", "completion"),
        Format.ALPACA: ("instruction", "input", "output", "system"),
        Format.SHAREGPT: ("conversations", "system"),
        Format.PREFERENCE: preference.KEYS,
    }
)
_UNSUPPORTED: Final = {"tools": "only the format with `messages` has tools", "functions": "use `tools`"}
_KNOWN: Final = ", ".join(f"`{key}` ({kind.value})" for key, kind in FORMAT_KEYS.items())
_ARRAY: Final = "the file is a JSON array, but must have one object per line; convert it with `jq -c '.[]' FILE`"
_SPEAKERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "chatgpt": "assistant",
        "bard": "assistant",
        "bing": "assistant",
    }
)


@dataclass(slots=True)
class IgnoredKey:
    """A key that is not used: the number of rows that have it, and the first SHOWN_ROWS of them.

    ``name`` is a path, such as ``id`` or ``messages[].name``; None stands for all keys after MAX_NAMED_KEYS.
    """

    name: str | None
    count: int = 0
    lines: list[int] = field(default_factory=list)


class ExampleReader:
    """Reads the lines of one file, in order.

    Attributes:
        kind: The file's format; None until a line had one.
        problems: Why lines are invalid, in file order; at most MAX_PROBLEMS.
        done: Whether the rest of the file need not be read: it has MAX_PROBLEMS invalid lines, or is no JSONL at all.
    """

    def __init__(self, kind: Format | None = None) -> None:
        self.kind = kind
        self.problems: list[Problem] = []
        self.done = False
        self._number = 0
        self._ignored: dict[str | None, IgnoredKey] = {}
        self._unknown_line: int | None = None

    @property
    def lines(self) -> int:
        """The number of lines read."""
        return self._number

    @property
    def ignored_keys(self) -> tuple[IgnoredKey, ...]:
        """The keys that are not used, in the order in which they occurred."""
        return tuple(self._ignored.values())

    def read(self, line: bytes) -> Example | None:
        """The example in the next line, without its newline; None if the line is invalid."""
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        ignored: set[str] = set()
        try:
            example = self._example(line, ignored)
        except LineRefused as refusal:
            self.refuse(refusal.reason)
            return None
        if ignored:
            self._note(ignored)
        return example

    def refuse(self, reason: str, *, line: int | None = None) -> None:
        """Record that the last line, or another one, is invalid."""
        self.problems.append(Problem(self._number if line is None else line, reason))
        self.done = self.done or len(self.problems) >= MAX_PROBLEMS

    def _example(self, line: bytes, ignored: set[str]) -> Example:
        if self._number == 1 and line.lstrip().startswith(b"[") and self.kind is None:
            self.done = True
            raise LineRefused(_ARRAY)
        value = decode_line(line)
        if not isinstance(value, dict):
            raise LineRefused("not a JSON object")
        kind = self._kind_of(value)
        ignored.update(unknown_keys(value, (*_KEYS[kind], GROUP, FILTERS), _UNSUPPORTED, ""))
        if _KEY_OF[kind] not in value:
            before = ", but the lines before have it" if self._number > 1 else ""
            raise LineRefused(f"the key `{_KEY_OF[kind]}` is missing{before}")
        group, filters = read_belonging(value)
        if kind is Format.PREFERENCE:
            pair = preference.read_pair(value, ignored)
            return Example(self._number, pair.messages, group, pair.tools, pair.rejected, filters)
        tools = read_tools(value.get("tools")) if kind is Format.CHAT else ()
        messages = read_messages(_TO_MESSAGES[kind](value, ignored), ignored, tools)
        return Example(self._number, messages, group, tools, filters=filters)

    def _kind_of(self, value: dict[str, Any]) -> Format:
        """The file's format, which the first line with exactly one of FORMAT_KEYS decides. Raises LineRefused."""
        kinds = [kind for key, kind in FORMAT_KEYS.items() if key in value]
        if self.kind is None and len(kinds) == 1:
            self.kind = kinds[0]
        if self.kind is not None and len(kinds) < 2:
            return self.kind
        if kinds:
            given = " and ".join(f"`{_KEY_OF[kind]}`" for kind in kinds)
            raise LineRefused(f"unknown format: the line has {given}, but must have only one of these keys: {_KNOWN}")
        for key in islice(value, MAX_KEYS_COMPARED):
            meant = similar_key(key, tuple(FORMAT_KEYS))
            if meant is not None:
                raise LineRefused(f"{show(key)[1:-1]} is not a known key; did you mean `{meant}`?")
        if self._unknown_line is not None:
            raise LineRefused(f"unknown format, as in line {self._unknown_line}")
        self._unknown_line = self._number
        raise LineRefused(f"unknown format: the line must have exactly one of these keys: {_KNOWN}")

    def _note(self, ignored: set[str]) -> None:
        names: dict[str | None, None] = {}
        for key in sorted(ignored):
            name = key[:MAX_KEY_CHARS]
            if name in self._ignored or len(self._ignored) < MAX_NAMED_KEYS:
                self._ignored.setdefault(name, IgnoredKey(name))
                names[name] = None
            else:
                names[None] = None
        for noted_name in names:
            noted = self._ignored.setdefault(noted_name, IgnoredKey(noted_name))
            noted.count += 1
            if len(noted.lines) < SHOWN_ROWS:
                noted.lines.append(self._number)


def read_lines(content: bytes, kind: Format | None = None) -> tuple[ExampleReader, tuple[Example, ...]]:
    """Read a whole file.

    Args:
        content: UTF-8 with or without a byte-order mark, one JSON object per line.
        kind: Its format; None to tell it from the lines.

    Returns:
        The reader, with the problems of all invalid lines, and the examples of the others.
    """
    reader = ExampleReader(kind)
    examples = []
    for line in split_lines(content):
        example = reader.read(line)
        if example is not None:
            examples.append(example)
        if reader.done:
            break
    return reader, tuple(examples)


def split_lines(content: bytes) -> list[bytes]:
    """The lines of a file, without a byte-order mark and without the empty line after the last newline."""
    lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    if lines[-1].strip() == b"":
        lines.pop()
    return lines


def _chat(row: dict[str, Any], _ignored: set[str]) -> object:
    return row["messages"]


def _prompt_completion(row: dict[str, Any], _ignored: set[str]) -> object:
    return _turns(None, _text(row, "prompt"), _text(row, "completion"))


def _alpaca(row: dict[str, Any], _ignored: set[str]) -> object:
    extra = _text(row, "input") if row.get("input") is not None else ""
    instruction = _text(row, "instruction")
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return _turns(_text(row, "system") if row.get("system") else None, question, _text(row, "output"))


def _sharegpt(row: dict[str, Any], ignored: set[str]) -> object:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise LineRefused("conversations must be a list")
    messages: list[dict[str, Any]] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _text(row, "system")})
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise LineRefused(f"{where} is not an object")
        unknown = unknown_keys(turn, ("from", "value", "weight"), {}, f"{where}.")
        ignored.update(f"conversations[].{key}" for key in unknown)
        speaker = turn.get("from")
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise LineRefused(f"{where}.from is {show(speaker)}; must be one of {', '.join(_SPEAKERS)}")
        message = {"role": role, "content": _text(turn, "value", where)}
        messages.append(message | ({"weight": turn["weight"]} if "weight" in turn else {}))
    return messages


_TO_MESSAGES: Final[Mapping[Format, Callable[[dict[str, Any], set[str]], object]]] = MappingProxyType(
    {
        Format.CHAT: _chat,
        Format.PROMPT_COMPLETION: _prompt_completion,
        Format.ALPACA: _alpaca,
        Format.SHAREGPT: _sharegpt,
    }
)


def _text(row: dict[str, Any], key: str, where: str = "") -> str:
    text = row.get(key)
    if not isinstance(text, str):
        raise LineRefused(f"{where}{'.' if where else ''}{key} must be a string")
    return text


def _turns(system: str | None, question: str, answer: str) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
