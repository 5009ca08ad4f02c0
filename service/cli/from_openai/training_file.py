"""OpenAI's training files as they are trained on here: text in parts becomes one text; pictures cannot be learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from service.client import ClientError

VISION: Final = frozenset({"image_url", "input_image", "image_file"})


def convert(source: Path, target: Path) -> int:
    """Write a training file with every message's text in one piece; returns how many messages were in parts.

    A line that is not JSON stays as it is: the gateway says what is wrong with it.

    Raises:
        ClientError: `vision_unsupported`: a message has a picture; `content_unsupported`: it has another part that is
            not text.
        OSError: A file cannot be read or written.
    """
    joined = 0
    with source.open("rb") as lines, target.open("wb") as out:
        for number, line in enumerate(lines, 1):
            count, text = _converted(line, number)
            joined += count
            out.write(text)
    return joined


def _converted(line: bytes, number: int) -> tuple[int, bytes]:
    """How many messages of a line were in parts, and the line with them in one piece."""
    if b'"type"' not in line:
        return 0, line
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return 0, line
    joined = 0
    for message in _messages(row):
        if isinstance(message.get("content"), list):
            message["content"] = _text(message["content"], number)
            joined += 1
    return joined, (json.dumps(row).encode() + b"\n") if joined else line


def _messages(row: Any) -> Iterator[dict[str, Any]]:
    """The messages of a line, in the chat and the preference format."""
    if not isinstance(row, dict):
        return
    prompt = row.get("input")
    lists = [row.get(key) for key in ("messages", "preferred_output", "non_preferred_output")]
    lists.append(prompt.get("messages") if isinstance(prompt, dict) else None)
    for messages in lists:
        if isinstance(messages, list):
            yield from (message for message in messages if isinstance(message, dict))


def _text(parts: list[Any], number: int) -> str:
    """The text of a message's parts. Raises ClientError."""
    texts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind == "text" else None
        if kind in VISION:
            message = f"line {number} has a picture, and adapters here learn from text alone"
            raise ClientError(0, "vision_unsupported", message)
        if not isinstance(text, str):
            message = f"line {number} has a message with a part of the type {kind!r}; only text can be learned here"
            raise ClientError(0, "content_unsupported", message)
        texts.append(text)
    return "".join(texts)
