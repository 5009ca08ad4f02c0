"""What differs between two versions of a dataset, row by row.

Rows are compared as JSON values, so spelling (key order, escapes, spaces) does not count, and as a multiset, so order
does not count either. Of the rows that only one side has, two with the same question and different answers are one
changed row. The answer is the last turn (`messages`, `conversations`), the `completion` or the `output`; everything
else in the row is its question. Rows of different formats never have the same question.

Everything here blocks: run it in a thread.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from adapters.dataset.formats import BYTE_ORDER_MARK

MAX_DIFF_ROWS: Final = 250_000
"""Rows of each side. Two versions of so many rows (120 MiB each) took 184 MiB of memory and 2.3 s of CPU."""
MAX_TEXT_CHARS: Final = 200
DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Difference:
    """Line numbers, from 1. ``changed``: pairs of a new line and the old line with the same question."""

    added: list[int]
    removed: list[int]
    changed: list[tuple[int, int]]
    unchanged: int


def count_rows(path: Path) -> int:
    """The number of rows in a file of JSON lines; the last one may end without a newline."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def compare(new: Path, old: Path) -> Difference:
    """Compare two files of JSON lines that were checked at their upload. Raises OSError."""
    new_rows, old_rows = _digests(new), _digests(old)
    spare = Counter(old_rows)
    only_new = []
    for index, row in enumerate(new_rows):
        if spare[row] > 0:
            spare[row] -= 1
        else:
            only_new.append(index)
    only_old = []
    for index in reversed(range(len(old_rows))):  # of equal rows, the last ones are those that are gone
        if spare[old_rows[index]] > 0:
            spare[old_rows[index]] -= 1
            only_old.append(index)
    by_question: dict[bytes, deque[int]] = defaultdict(deque)
    for index in reversed(only_old):
        by_question[old_rows[index][:DIGEST_BYTES]].append(index)
    added, changed = [], []
    for index in only_new:
        same_question = by_question.get(new_rows[index][:DIGEST_BYTES])
        if same_question:
            changed.append((index + 1, same_question.popleft() + 1))
        else:
            added.append(index + 1)
    removed = sorted(index + 1 for rest in by_question.values() for index in rest)
    return Difference(added, removed, changed, len(new_rows) - len(only_new))


def describe(new: Path, old: Path, difference: Difference, limit: int) -> dict[str, Any]:
    """The first ``limit`` rows of each kind, with shortened texts; fields as in `DatasetDiff`."""
    added, removed, changed = difference.added[:limit], difference.removed[:limit], difference.changed[:limit]
    new_texts = _texts(new, {*added, *(line for line, _ in changed)})
    old_texts = _texts(old, {*removed, *(line for _, line in changed)})
    return {
        "added": [_shown(line, new_texts) for line in added],
        "removed": [_shown(line, old_texts) for line in removed],
        "changed": [
            _shown(line, new_texts) | {"against_line": old_line, "against_answer": old_texts[old_line][1]}
            for line, old_line in changed
        ],
    }


def split_row(row: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A row without its answer, and the answer; None if it has none."""
    for key in ("messages", "conversations"):
        turns = row.get(key)
        if isinstance(turns, list) and turns:
            return {**row, key: turns[:-1]}, turns[-1]
    for key in ("completion", "output"):
        if key in row:
            return {name: value for name, value in row.items() if name != key}, row[key]
    return row, None


def _digests(path: Path) -> list[bytes]:
    """Of each row the digest of its question followed by that of its answer."""
    return [_digest(question) + _digest(answer) for question, answer in map(split_row, _rows(path))]


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(_spelled(value), digest_size=DIGEST_BYTES).digest()


def _spelled(value: Any) -> bytes:
    """As JSON, its keys sorted."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # half a surrogate pair, or a number of more than 64 bits
        return json.dumps(value, sort_keys=True).encode()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            text = line.removeprefix(BYTE_ORDER_MARK) if number == 0 else line
            if text.strip():  # only what follows the last newline may be empty
                try:
                    yield orjson.loads(text)
                except orjson.JSONDecodeError:  # what the upload's decoder lets pass in a key that is not used
                    yield json.loads(text)


def _texts(path: Path, lines: Collection[int]) -> dict[int, tuple[str, str]]:
    """Question and answer of some lines, shortened."""
    if not lines:
        return {}
    texts: dict[int, tuple[str, str]] = {}
    for number, row in enumerate(_rows(path), start=1):
        if number in lines:
            question, answer = split_row(row)
            texts[number] = _shortened(_question_text(question)), _shortened(answer)
            if len(texts) == len(lines):
                break
    return texts


def _question_text(question: dict[str, Any]) -> Any:
    """What a reader recognises a question by: its last turn or its prompt; Alpaca's instruction with the input."""
    for key in ("messages", "conversations"):
        turns = question.get(key)
        if isinstance(turns, list):
            return turns[-1] if turns else ""
    if "prompt" in question:
        return question["prompt"]
    texts = [question[key] for key in ("instruction", "input") if question.get(key)]
    return " / ".join(texts) if texts and all(isinstance(text, str) for text in texts) else question


def _shortened(value: Any) -> str:
    """A turn's or a field's text; other values as JSON."""
    if isinstance(value, dict):
        value = value.get("content", value.get("value", value))
    text = value if isinstance(value, str) else _spelled(value).decode()
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[: MAX_TEXT_CHARS - 1]}…"


def _shown(line: int, texts: dict[int, tuple[str, str]]) -> dict[str, Any]:
    question, answer = texts[line]
    return {"line": line, "question": question, "answer": answer}
