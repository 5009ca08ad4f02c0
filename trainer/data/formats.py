"""The supported formats of training data: detected from the first line, reported, and converted to chat.

    chat               {"messages": [{"role", "content"}, …]}                        OpenAI
    prompt_completion  {"prompt", "completion"}                                      OpenAI's older one, TRL's
    alpaca             {"instruction", "input" (may be empty or absent), "output"}   Stanford Alpaca
    sharegpt           {"conversations": [{"from": "human"|"gpt"|…, "value"}, …]}    ShareGPT, Vicuna

A file has one format: a line in another format is refused with its number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from trainer.data.format import GROUP, Dataset, LineRefused, check_keys, decode_line, parse_lines, split_lines
from trainer.errors import DataInvalid, DataTooSmall, Problem


class Format(StrEnum):
    """The format of a file's lines."""

    CHAT = "chat"
    PROMPT_COMPLETION = "prompt_completion"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"


_KEY_FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "messages": Format.CHAT,
        "prompt": Format.PROMPT_COMPLETION,
        "instruction": Format.ALPACA,
        "conversations": Format.SHAREGPT,
    }
)
"""Each format has exactly one of these keys."""

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


def read_dataset(name: str, content: bytes, *, min_examples: int = 1) -> tuple[Format, Dataset]:
    """A data file's format and its examples.

    Args:
        name: The file's name in messages and in the lineage.
        content: Its bytes: UTF-8, one JSON object per line.

    Raises:
        DataInvalid: Lists every invalid line.
        DataTooSmall: Fewer than `min_examples`.
    """
    kind = detect(content)
    examples = parse_lines(content, _TO_CHAT[kind])
    if len(examples) < min_examples:
        raise DataTooSmall(f"{name} has {len(examples)} examples; at least {min_examples} are needed.")
    return kind, Dataset(name=name, sha256=hashlib.sha256(content).hexdigest(), examples=examples)


def detect(content: bytes) -> Format:
    """The format of a file, detected from its first line.

    Raises:
        DataInvalid: The file is empty, or its first line has no known format.
    """
    lines = split_lines(content)
    if not lines:
        raise DataInvalid([Problem(1, "the file is empty")])
    if lines[0].lstrip().startswith(b"["):
        raise DataInvalid(
            [
                Problem(
                    1, "the file is a JSON array, but must have one object per line; convert it with `jq -c '.[]' FILE`"
                )
            ]
        )
    try:
        first = decode_line(lines[0])
    except LineRefused as refusal:
        raise DataInvalid([Problem(1, refusal.reason)]) from refusal
    kinds = [kind for key, kind in _KEY_FORMATS.items() if isinstance(first, dict) and key in first]
    if len(kinds) != 1:
        known = ", ".join(f"`{key}` ({kind.value})" for key, kind in _KEY_FORMATS.items())
        raise DataInvalid([Problem(1, f"unknown format: the line must have exactly one of these keys: {known}")])
    return kinds[0]


def _chat(value: object) -> object:
    return value


def _prompt_completion(value: object) -> object:
    row = _row(value, Format.PROMPT_COMPLETION, {"prompt", "completion"})
    return _turns(None, _text(row, "prompt"), _text(row, "completion"))


def _alpaca(value: object) -> object:
    row = _row(value, Format.ALPACA, {"instruction", "input", "output", "system"})
    extra = _text(row, "input") if row.get("input") is not None else ""
    instruction = _text(row, "instruction")
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return _turns(_text(row, "system") if row.get("system") else None, question, _text(row, "output"))


def _sharegpt(value: object) -> object:
    row = _row(value, Format.SHAREGPT, {"conversations", "system", "id"})
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise LineRefused("conversations must be a list")
    messages: list[dict[str, Any]] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _text(row, "system")})
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise LineRefused(f"{where} is not an object")
        check_keys(turn, {"from", "value", "weight"}, f"{where}.")
        speaker = turn.get("from")
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise LineRefused(f"{where}.from is {speaker!r}; must be one of {', '.join(_SPEAKERS)}")
        message = {"role": role, "content": _text(turn, "value", where)}
        messages.append(message | ({"weight": turn["weight"]} if "weight" in turn else {}))
    return {"messages": messages}


_TO_CHAT: Final[Mapping[Format, Callable[[object], object]]] = MappingProxyType(
    {
        Format.CHAT: _chat,
        Format.PROMPT_COMPLETION: _prompt_completion,
        Format.ALPACA: _alpaca,
        Format.SHAREGPT: _sharegpt,
    }
)


def _row(value: object, kind: Format, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LineRefused(f"not an object: expected the format {kind.value}")
    check_keys(value, known | {GROUP}, "")
    return value


def _text(row: dict[str, Any], key: str, where: str = "") -> str:
    text = row.get(key)
    if not isinstance(text, str):
        raise LineRefused(f"{where}{'.' if where else ''}{key} must be a string")
    return text


def _turns(system: str | None, question: str, answer: str) -> dict[str, Any]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return {"messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
