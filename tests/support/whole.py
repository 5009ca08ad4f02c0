"""Answers that a small model has ended by itself.

Every grammar of JSON allows blanks between its parts, and a model of 135 million parameters now and then writes nothing
else until its tokens are over. That is no fault of whoever decodes; an answer that never ends in so many tries is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
ATTEMPTS = 6


def first_whole(ask: Callable[[int], T], is_cut: Callable[[T], bool]) -> T:
    """The first answer that was not cut at its longest. `ask` is told how often it has been called: it should sample
    where that is more than never, or the same comes again."""
    for attempt in range(ATTEMPTS):
        answer = ask(attempt)
        if not is_cut(answer):
            return answer
    raise AssertionError(f"{ATTEMPTS} answers were cut, and the last is {answer}")
