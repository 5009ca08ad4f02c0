"""The formats that training data comes in: found out from the first line, said, and turned into chat.

    chat               {"messages": [{"role", "content"}, …]}                        OpenAI
    prompt_completion  {"prompt", "completion"}                                      OpenAI's older one, TRL's
    alpaca             {"instruction", "input" (may be empty or absent), "output"}   Stanford Alpaca
    sharegpt           {"conversations": [{"from": "human"|"gpt"|…, "value"}, …]}    ShareGPT, Vicuna

A file has one format: a line of another is refused by its number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from trainer.data.format import Dataset, Refusal, decoded, parse_lines, refuse_other_keys, split_lines
from trainer.errors import DataInvalid, DataTooSmall, Problem


class Format(StrEnum):
    """How a file's lines are laid out."""

    CHAT = "chat"
    PROMPT_COMPLETION = "prompt_completion"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"


_SIGNS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "messages": Format.CHAT,
        "prompt": Format.PROMPT_COMPLETION,
        "instruction": Format.ALPACA,
        "conversations": Format.SHAREGPT,
    }
)
"""The key that tells a format; none has another's."""

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
        name: What the file is called in messages and in the lineage.
        content: Its bytes: UTF-8, one JSON object a line.

    Raises:
        DataInvalid: With every line at fault.
        DataTooSmall: Fewer than `min_examples`.
    """
    kind = detect(content)
    examples = parse_lines(content, _TO_CHAT[kind])
    if len(examples) < min_examples:
        raise DataTooSmall(f"{name} has {len(examples)} examples; at least {min_examples} are needed.")
    return kind, Dataset(name=name, sha256=hashlib.sha256(content).hexdigest(), examples=examples)


def detect(content: bytes) -> Format:
    """The format, told from the first line.

    Raises:
        DataInvalid: The file is empty, or its first line is of no known format.
    """
    lines = split_lines(content)
    if not lines:
        raise DataInvalid([Problem(1, "the file is empty")])
    if lines[0].lstrip().startswith(b"["):
        raise DataInvalid(
            [Problem(1, "a JSON array: one object a line is needed (`jq -c '.[]' FILE` makes that of it)")]
        )
    try:
        first = decoded(lines[0])
    except Refusal as refusal:
        raise DataInvalid([Problem(1, refusal.reason)]) from refusal
    kinds = [kind for sign, kind in _SIGNS.items() if isinstance(first, dict) and sign in first]
    if len(kinds) != 1:
        known = ", ".join(f"`{sign}` ({kind.value})" for sign, kind in _SIGNS.items())
        raise DataInvalid([Problem(1, f"its format cannot be told: exactly one of these keys is looked for: {known}")])
    return kinds[0]


def _chat(value: object) -> object:
    return value


def _prompt_completion(value: object) -> object:
    row = _row(value, Format.PROMPT_COMPLETION, {"prompt", "completion"})
    return _turns(None, _text(row, "prompt"), _text(row, "completion"))


def _alpaca(value: object) -> object:
    row = _row(value, Format.ALPACA, {"instruction", "input", "output", "system"})
    more = _text(row, "input") if row.get("input") is not None else ""
    instruction = _text(row, "instruction")
    question = f"{instruction}\n\n{more}" if more.strip() else instruction
    return _turns(_text(row, "system") if row.get("system") else None, question, _text(row, "output"))


def _sharegpt(value: object) -> object:
    row = _row(value, Format.SHAREGPT, {"conversations", "system", "id"})
    said = row.get("conversations")
    if not isinstance(said, list):
        raise Refusal("conversations must be a list")
    messages: list[dict[str, Any]] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _text(row, "system")})
    for index, turn in enumerate(said):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise Refusal(f"{where} is not an object")
        refuse_other_keys(turn, {"from", "value", "weight"}, f"{where}.")
        speaker = turn.get("from")
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise Refusal(f"{where}.from is {speaker!r}, not one of {', '.join(_SPEAKERS)}")
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
        raise Refusal(f"not an object: expected one of the format {kind.value}")
    refuse_other_keys(value, known, "")
    return value


def _text(row: dict[str, Any], key: str, where: str = "") -> str:
    found = row.get(key)
    if not isinstance(found, str):
        raise Refusal(f"{where}{'.' if where else ''}{key} must be a text")
    return found


def _turns(system: str | None, question: str, answer: str) -> dict[str, Any]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return {"messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
