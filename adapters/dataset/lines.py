"""One line of a data file: its JSON value, its keys, and why it is invalid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NoReturn

from adapters.json_depth import MAX_LEVELS, too_deep_text

MAX_LINE_BYTES: Final = 8 * 1024 * 1024
SHOWN_PROBLEMS: Final = 20
"""Number of invalid lines that a message lists; it counts the others."""
MAX_PROBLEMS: Final = 1000
"""Number of invalid lines after which no more of a file is read."""
MAX_KEYS_COMPARED: Final = 50
"""Of one object; the others cannot be typing errors of the few known keys."""
SHOWN_CHARS: Final = 60
LONG_KEY: Final = 7
"""Length of a known key from which two edits, not one, count as a typing error."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line of a data file is invalid; `line` counts from 1."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def describe_problems(problems: Sequence[Problem]) -> str:
    """The first SHOWN_PROBLEMS problems, and how many more there are. All messages about a file's lines use this."""
    shown = "; ".join(str(problem) for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    if more <= 0:
        return shown
    stopped = f"; reading stopped at line {problems[-1].line}" if len(problems) >= MAX_PROBLEMS else ""
    return f"{shown}; and {more} more{stopped}"


class LineRefused(Exception):
    """A line is invalid for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_line(line: bytes) -> object:
    """A line's JSON value. Raises LineRefused."""
    if len(line) > MAX_LINE_BYTES:
        raise LineRefused(f"longer than {MAX_LINE_BYTES} bytes")
    if not line.strip():
        raise LineRefused("the line is empty")
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise LineRefused(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise LineRefused(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except ValueError as error:  # Python limits the digits of an integer
        raise LineRefused("not JSON: a number has too many digits") from error
    except RecursionError as error:
        raise LineRefused(f"nested more than {MAX_LEVELS} levels deep") from error
    if too_deep_text(line, value) is not None:
        raise LineRefused(f"nested more than {MAX_LEVELS} levels deep")
    return value


def require_text(value: object, where: str) -> None:
    """Raise LineRefused if a string in a JSON value is no text: half of an escaped pair of surrogates is none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise LineRefused(f"{where} contains an unpaired surrogate") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value_of = dict(pairs)
    if len(value_of) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise LineRefused(f"duplicate key {show(key)}")
    return value_of


def _refuse_constant(name: str) -> NoReturn:
    raise LineRefused(f"not JSON: {name}")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)


def show(value: object) -> str:
    """A value of the file for a message: quoted, printable and short."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def unknown_keys(
    value: dict[str, Any], known: Collection[str], unsupported: Mapping[str, str], prefix: str
) -> list[str]:
    """The keys of an object that are not used, for a note.

    Args:
        known: The keys that are used.
        unsupported: Keys that would change what the example teaches, with what to do; they may only be empty.
        prefix: The object's place, such as ``messages[0].``, for messages.

    Raises:
        LineRefused: A key is unsupported, or looks like a typing error of a known key that the object does not have.
    """
    unknown = [key for key in value if key not in known]
    if not unknown:
        return unknown
    missing = tuple(key for key in known if key not in value)
    for key in unknown[:MAX_KEYS_COMPARED]:
        if key in unsupported and value[key] not in (None, [], {}, ""):
            raise LineRefused(f"{prefix}{key} is not supported here: {unsupported[key]}")
        meant = similar_key(key, missing)
        if meant is not None and key not in unsupported:
            raise LineRefused(f"{prefix}{show(key)[1:-1]} is not a known key; did you mean `{meant}`?")
    return unknown


@lru_cache(maxsize=4096)
def similar_key(key: str, known: tuple[str, ...]) -> str | None:
    """The known key that a key is probably meant to be; None if it is like none of them."""
    for meant in known:
        allowed = 2 if len(meant) >= LONG_KEY else 1
        if abs(len(key) - len(meant)) <= allowed and edits(key.strip().casefold(), meant) <= allowed:
            return meant
    return None


def edits(first: str, second: str) -> int:
    """The number of letters to insert, delete, replace or swap with the next (optimal string alignment distance)."""
    before: list[int] = []
    last = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        now = [row]
        for column, other in enumerate(second, start=1):
            cost = min(last[column] + 1, now[-1] + 1, last[column - 1] + (letter != other))
            if row > 1 and column > 1 and letter == second[column - 2] and first[row - 2] == other:
                cost = min(cost, before[column - 2] + 1)
            now.append(cost)
        before, last = last, now
    return last[-1]
