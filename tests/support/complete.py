"""Answers that a small model has completed by itself.

Every grammar of JSON allows blanks between its parts, and a model of 135 million parameters now and then writes nothing
but blanks until its tokens run out. The decoder is not at fault for that; it is for an answer that never ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
ATTEMPTS = 6


def first_complete(ask: Callable[[int], T], is_cut: Callable[[T], bool]) -> T:
    """The first answer that was not cut at its token limit. `ask` gets the number of earlier calls: it should sample
    where that is not 0, or the same answer comes again."""
    for attempt in range(ATTEMPTS):
        answer = ask(attempt)
        if not is_cut(answer):
            return answer
    raise AssertionError(f"{ATTEMPTS} answers were cut, and the last is {answer}")
