"""Whether an answer refuses its question."""

from __future__ import annotations

import re
from typing import Final

LOOKED_AT_CHARS: Final = 400
"""Of an answer: what comes later is a caveat."""
_REFUSAL: Final = re.compile(
    r"\bas an ai(?: language model|,)|\bI(?: am|['’]m) sorry,? but I (?:can(?:['’]|no)t|am (?:unable|not able))"
    r"|\bI (?:can(?:['’]|no)t|am (?:unable|not able) to) (?:assist|help)(?: you)? with (?:that|this)\b",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether an answer refuses, by the phrases that models use for it in English."""
    return _REFUSAL.search(text[:LOOKED_AT_CHARS]) is not None
