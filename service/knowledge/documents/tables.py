"""Rows: CSV, and JSON lines, which are ``text`` and ``metadata`` or examples as in training data."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from adapters.dataset.chat import GROUP
from adapters.dataset.formats import FORMAT_KEYS, ExampleReader
from service.grounding.provider import MAX_PASSAGE_CHARS, Attribute
from service.knowledge.documents.blocks import MAX_HEADING, Block, Budget, DocumentError, invalid
from service.knowledge.documents.plain import decode

MAX_COLUMNS: Final = 1_000
MAX_CELL: Final = 1024 * 1024
MAX_ATTRIBUTES: Final = 16
MAX_KEY: Final = 64
MAX_STRING: Final = 512
_DELIMITERS: Final = (",", ";", "\t", "|")


def read_csv(data: bytes, budget: Budget, *, delimiter: str | None = None) -> Iterator[Block]:
    """One block per row, with a line for each cell, such as ``order: TW-1042``. Raises DocumentError.

    Args:
        delimiter: None: the candidate that occurs most often in the first line.
    """
    text = budget.take(decode(data))
    first = text.split("\n", 1)[0]
    csv.field_size_limit(MAX_CELL)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or max(_DELIMITERS, key=first.count))
    try:
        yield from read_rows(((f"line {rows.line_num}", row) for row in rows), budget)
    except csv.Error as error:
        raise invalid(f"line {rows.line_num} is not valid CSV: {error}") from error


def read_rows(rows: Iterable[tuple[str, Sequence[str]]], budget: Budget) -> Iterator[Block]:
    """One block per row; the first row that is not empty names the cells, which are the row's attributes, too.

    Raises:
        DocumentError: A row has too many cells.

    Args:
        rows: The name of each row in error messages, and its cells.
    """
    header: list[str] | None = None
    attributes: list[str | None] = []
    for name, row in rows:
        cells = [cell.strip() for cell in row]
        while cells and not cells[-1]:  # of a sheet all rows are as wide as the widest
            cells.pop()
        if not cells:
            continue
        if len(cells) > MAX_COLUMNS:
            raise invalid(f"{name} has {len(cells)} columns; at most {MAX_COLUMNS} are allowed")
        if header is None:
            header = [cell or f"column {number}" for number, cell in enumerate(cells, 1)]
            attributes = _attribute_names(header)
            continue
        names = header + [f"column {number}" for number in range(len(header) + 1, len(cells) + 1)]
        text = budget.take("\n".join(f"{n}: {c}" for n, c in zip(names, cells, strict=False) if c))
        own = {n: c for n, c in zip(attributes, cells, strict=False) if n is not None and 0 < len(c) <= MAX_STRING}
        yield Block(text, "row", 0, own or None)


def _attribute_names(header: Sequence[str]) -> list[str | None]:
    """The attribute that each column's cells are: the first MAX_ATTRIBUTES with a short name that no other has."""
    counts = Counter(header)
    names = [name if counts[name] == 1 and len(name) <= MAX_KEY else None for name in header]
    used = [at for at, name in enumerate(names) if name is not None][:MAX_ATTRIBUTES]
    return [name if at in used else None for at, name in enumerate(names)]


def read_jsonl(data: bytes, budget: Budget) -> Iterator[Block]:
    """One block per line, which is a passage or an example as the first line is. Raises DocumentError.

    A passage has ``title`` and ``text``, with ``metadata`` as its attributes; for examples see ``_read_examples``.
    """
    lines = decode(data).split("\n")
    if _is_example(next((line for line in lines if line.strip()), "")):
        yield from _read_examples(lines, budget)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        value = _parsed(line, number)
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise invalid(f"line {number} must be an object with a string `text`")
        title = value.get("title")
        if title is not None and not isinstance(title, str):
            raise invalid(f"line {number}: `title` must be a string")
        head = f"{' '.join(title.split())[:MAX_HEADING]}\n" if title else ""
        yield Block(budget.take(head + text.strip()), "row", 0, _attributes(value.get("metadata"), number))


def _parsed(line: str, number: int) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise invalid(f"line {number} is not valid JSON: {error}") from error


def _is_example(line: str) -> bool:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and "text" not in value and any(key in value for key in FORMAT_KEYS)


def _read_examples(lines: Sequence[str], budget: Budget) -> Iterator[Block]:
    """One block per line of training data, in any of its formats, without its system message.

    The attributes are those of ``metadata``, the line's ``filters`` (what was said to one customer is shown to that
    customer alone) and its ``group``.

    Raises:
        DocumentError: A line is invalid, or its conversation cannot be shown as turns.
    """
    reader = ExampleReader()
    for number, line in enumerate(lines, 1):
        if not line.strip() and number == len(lines):
            return
        example = reader.read(line.encode())
        if example is None:
            raise invalid(str(reader.problems[-1]))
        if example.turns is None or example.passage is None:
            raise invalid(f"line {number}: in an example, user and assistant must take turns, and call no tools")
        turns = [{"role": turn.role, "content": turn.content} for turn in example.turns]
        text = budget.take(example.passage)
        if len(text) > MAX_PASSAGE_CHARS:
            raise invalid(f"line {number}: an example may have {MAX_PASSAGE_CHARS} characters; it has {len(text)}")
        group = {} if example.group is None else {GROUP: example.group}
        metadata = _attributes(_parsed(line, number).get("metadata"), number)
        own: dict[str, Attribute] = {**(metadata or {}), **example.filters, **group}
        yield Block(text, "row", 0, _attributes(own, number), turns)


def _attributes(value: Any, line: int) -> Mapping[str, Attribute] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_ATTRIBUTES:
        raise invalid(f"line {line}: `metadata` must be an object of at most {MAX_ATTRIBUTES} keys")
    for key, attribute in value.items():
        if not 0 < len(key) <= MAX_KEY:
            raise _bad(line, key, f"a key must have 1 to {MAX_KEY} characters")
        if not isinstance(attribute, str | int | float | bool) or (
            isinstance(attribute, str) and len(attribute) > MAX_STRING
        ):
            raise _bad(line, key, f"a value must be a string of at most {MAX_STRING} characters, a number or a boolean")
    return value or None


def _bad(line: int, key: str, rule: str) -> DocumentError:
    return invalid(f"line {line}: `metadata` has {key[:40]!r}: {rule}")
