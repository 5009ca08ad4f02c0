"""The input file of a batch: JSON lines, read in parts, and what each line must be.

Reading blocks: run it in a thread. A part is about 64 KiB, or one line where that is longer, so that memory does not
depend on the file's size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters.json_depth import MAX_LEVELS, too_deep_text
from service.errors import BadRequest, HatrackError, TooLarge
from service.http.checks import describe, invalid_value
from service.http.json_text import load_json

PART_BYTES: Final = 64 * 1024
ENVELOPE_BYTES: Final = 64 * 1024
"""What a line may have beside the body of its request."""
MAX_CUSTOM_ID_CHARS: Final = 512
FIELDS: Final = ("custom_id", "method", "url", "body")
HEAD_BYTES: Final = 8 * 1024
"""What is kept of a line that is too long."""
_FIRST_FIELD: Final = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class InputLine:
    """A line that is not blank; ``number`` counts from 1, ``text`` is None if it is too long: then there is its
    ``head``."""

    number: int
    text: bytes | None
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class LineRequest:
    """The request of a line."""

    number: int
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that was right when the batch was created and is not any more: a limit was lowered since. Of a
    ``custom_id`` that cannot be read nothing is left."""

    number: int
    custom_id: str
    error: HatrackError


class InputLines:
    """Reads the lines of an input file in order. The file is open only while a part is read.

    Args:
        path: The file.
        max_line_bytes: Longer lines have no text.
    """

    def __init__(self, path: Path, max_line_bytes: int) -> None:
        self._path = path
        self._max_line_bytes = max_line_bytes
        self._offset = 0
        self._number = 0

    def next_part(self) -> list[InputLine]:
        """The next lines that are not blank; empty at the end of the file."""
        lines: list[InputLine] = []
        size = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while size < PART_BYTES or not lines:
                text = file.readline(self._max_line_bytes + 1)
                if not text:
                    break
                self._number += 1
                if self._number == 1:
                    text = text.removeprefix(BYTE_ORDER_MARK)
                size += len(text)
                if len(text) > self._max_line_bytes:
                    head = text[:HEAD_BYTES]
                    while text and not text.endswith(b"\n"):
                        text = file.readline(PART_BYTES)
                    lines.append(InputLine(self._number, None, head))
                elif text.strip():
                    lines.append(InputLine(self._number, text))
            self._offset = file.tell()
        return lines

    def requests(self, endpoint: str, is_done: Callable[[int], bool]) -> Iterator[list[LineRequest | RefusedLine]]:
        """The requests, part after part, of a file that was checked; without lines that are done, by their number."""
        while part := self.next_part():
            yield [_request_of(line, endpoint) for line in part if not is_done(line.number)]


def _request_of(line: InputLine, endpoint: str) -> LineRequest | RefusedLine:
    try:
        return parse_line(line, endpoint)
    except HatrackError as error:
        return RefusedLine(line.number, _custom_id(line), error)


def _custom_id(line: InputLine) -> str:
    """The `custom_id` of a line that is not valid; of one that is too long, if it comes first. Else empty."""
    try:
        if line.text is not None:
            value = load_json(line.text.strip())
            found = value.get("custom_id") if isinstance(value, dict) else None
        else:
            first = _FIRST_FIELD.match(line.head)
            found = None if first is None else load_json(first[1])
    except BadRequest:
        return ""
    return found if isinstance(found, str) else ""


def parse_line(line: InputLine, endpoint: str) -> LineRequest:
    """The request of a line of a batch with this endpoint.

    Raises:
        TooLarge: It is too long.
        BadRequest: It is not what a line must be; ``param`` names the field.
    """
    if line.text is None:
        raise TooLarge("the line is too long: a request's body may have HATRACK_MAX_BODY_MIB", code="line_too_long")
    try:
        value = load_json(line.text.strip())
    except BadRequest as error:
        message = error.message.replace("the body", "the line")
        raise BadRequest(message, code="invalid_json_line") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the line must be a JSON object; got {describe(value)}", code="invalid_json_line")
    deep = too_deep_text(line.text, value)
    if deep is not None:
        raise BadRequest(f"`{deep}` must be nested at most {MAX_LEVELS} levels deep", param=deep)
    _check_names(value)
    custom_id, body = value["custom_id"], value["body"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise invalid_value("custom_id", custom_id, f"a string of 1 to {MAX_CUSTOM_ID_CHARS} characters")
    if value["method"] != "POST":
        raise invalid_value("method", value["method"], "'POST'")
    if value["url"] != endpoint:
        raise invalid_value("url", value["url"], f"the batch's endpoint, {endpoint!r}")
    if not isinstance(body, dict):
        raise invalid_value("body", body, "an object")
    if body.get("stream"):
        raise BadRequest("`body.stream` must be false or absent: a batch's answers are whole", param="body.stream")
    return LineRequest(line.number, custom_id, body)


def _check_names(value: dict[str, Any]) -> None:
    for name in value:
        if name not in FIELDS:
            raise BadRequest(
                f"unknown field {describe(name)}; a line has {', '.join(f'`{field}`' for field in FIELDS)}",
                param=name[:100],
                code="unknown_parameter",
            )
    for name in FIELDS:
        if name not in value:
            raise BadRequest(f"`{name}` is missing", param=name, code="missing_required_parameter")
