"""Whether an upload can be training data at all: told line by line while it arrives, in bounded memory.

What is looked at: UTF-8, one JSON object a line, and the key that tells the format, the same in every line. All else
(turns, roles, lengths, duplicates) is the trainer's quality report.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import orjson

from adapters.json_depth import MAX_LEVELS, too_deep_text
from service.errors import BadRequest

MAX_LINE_BYTES: Final = 8 * 1024 * 1024
MAX_PROBLEMS: Final = 5
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
FORMAT_KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "messages": "OpenAI chat",
        "prompt": "prompt and completion",
        "instruction": "Alpaca",
        "conversations": "ShareGPT",
    }
)
"""The key that tells a format."""


class LineCheck:
    """Checks JSON lines that are fed in chunks; stops after SHOWN_PROBLEMS invalid lines."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._number = 0
        self._format_key: str | None = None
        self._problems: list[str] = []

    def feed(self, data: bytes) -> None:
        """Check the lines that ``data`` completes. Raises BadRequest after SHOWN_PROBLEMS invalid ones."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._rest += data[start:end]
            self._line(bytes(self._rest))
            self._rest.clear()
            start = end + 1
        self._rest += data[start:]
        if len(self._rest) > MAX_LINE_BYTES:
            self._problem(self._number + 1, f"longer than {MAX_LINE_BYTES} bytes")
            raise self._refusal()

    def finish(self) -> None:
        """Check the last line. Raises BadRequest if a line is invalid, or there is none."""
        if self._rest.strip():
            self._line(bytes(self._rest))
        if self._number == 0 and not self._problems:
            self._problem(1, "the file is empty")
        if self._problems:
            raise self._refusal()

    def _line(self, line: bytes) -> None:
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) > MAX_LINE_BYTES:
            self._problem(self._number, f"longer than {MAX_LINE_BYTES} bytes")
            return
        if not line.strip():
            self._problem(self._number, "the line is empty")
            return
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            self._problem(self._number, _json_error(line, error))
            return
        if too_deep_text(line, value) is not None:
            self._problem(self._number, f"nested more than {MAX_LEVELS} levels deep")
            return
        self._check_object(value)

    def _check_object(self, value: object) -> None:
        if not isinstance(value, dict):
            array = isinstance(value, list) and self._number == 1
            hint = "; put one object on each line (`jq -c '.[]' FILE` converts an array)" if array else ""
            self._problem(self._number, f"not a JSON object{hint}")
            return
        format_keys = [format_key for format_key in FORMAT_KEYS if format_key in value]
        if self._format_key is None:
            if len(format_keys) != 1:
                known = ", ".join(f"`{format_key}` ({name})" for format_key, name in FORMAT_KEYS.items())
                self._problem(self._number, f"unknown format: expected exactly one of these keys: {known}")
                return
            self._format_key = format_keys[0]
        elif self._format_key not in value:
            self._problem(self._number, f"the key `{self._format_key}` is missing, but the lines before have it")

    def _problem(self, number: int, reason: str) -> None:
        self._problems.append(f"line {number}: {reason}")
        if len(self._problems) >= MAX_PROBLEMS:
            raise self._refusal()

    def _refusal(self) -> BadRequest:
        return BadRequest(
            f"the training file cannot be used: {'; '.join(self._problems)}",
            param="file",
            code="invalid_training_file",
        )


def _json_error(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 at byte {wrong.start + 1}"
    return f"not JSON: {error.msg} at character {error.pos + 1}"
