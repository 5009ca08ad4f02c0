"""What an unknown model's name was probably meant to be: "did you mean `tidewater`?"

The effort is bounded whatever the number of adapters: few names are compared one by one; of many, only those are looked
up that differ from the asked one by one character.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from typing import Final

from adapters.names import MAX_NAME_LENGTH

FEW: Final = 64
"""Names that are compared one by one, about 10 µs each."""
SIMILARITY: Final = 0.7
MAX_EDITED: Final = 20
"""Longer names are only looked up without one of their characters, or with two exchanged: it is quicker."""
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789-_."


def closest(name: str, known: Collection[str]) -> str | None:
    """The one of a few names that is most like ``name``; None if none is. Of more names, the first FEW count."""
    few = [known_name for known_name, _ in zip(known, range(FEW), strict=False)]
    return next(iter(get_close_matches(name.lower(), few, 1, SIMILARITY)), None)


def one_character_off(name: str, is_known: Callable[[str], bool]) -> str | None:
    """A known name that differs from ``name`` in case, in `_` for `-`, or in one character; None if there is none.

    Args:
        is_known: Asked at most about 80 times for each of the name's characters (Norvig's edits of distance 1).
    """
    if len(name) > MAX_NAME_LENGTH + 1:
        return None
    return next((edited for edited in _edits(name.lower()) if is_known(edited)), None)


def _edits(name: str) -> Iterator[str]:
    yield name
    yield name.replace("_", "-").replace(" ", "-")
    yield name.replace("-", "_")
    splits = [(name[:at], name[at:]) for at in range(len(name) + 1)]
    yield from (left + right[1:] for left, right in splits if right)
    yield from (left + right[1] + right[0] + right[2:] for left, right in splits if len(right) > 1)
    if len(name) > MAX_EDITED:
        return
    yield from (left + letter + right for left, right in splits for letter in _LETTERS)
    yield from (left + letter + right[1:] for left, right in splits if right for letter in _LETTERS)
