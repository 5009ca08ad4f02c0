"""How deeply JSON from outside may be nested: what walks over it by recursion (pydantic, orjson) ends at some depth."""

from __future__ import annotations

from typing import Any, Final

MAX_LEVELS: Final = 100
_CONTAINERS: Final = frozenset({"", "method", "supervised", "hyperparameters", "metadata"})
"""Objects whose fields are told by a name of their own; everything below those belongs to the field."""


def too_deep(value: Any, *, most: int = MAX_LEVELS) -> str | None:
    """The dotted name of a field with more than ``most`` levels of objects and lists; None where there is none.

    Walks without recursion, and so over whatever a parser gives.
    """
    left: list[tuple[str, int, Any]] = [("", 0, value)]
    while left:
        place, level, found = left.pop()
        if level > most:
            return place
        if isinstance(found, dict):
            named = place.rpartition(".")[2] in _CONTAINERS
            for key, inner in found.items():
                below = f"{place}.{str(key)[:64]}".removeprefix(".") if named else place
                left.append((below, level + 1, inner))
        elif isinstance(found, list):
            left.extend((place, level + 1, inner) for inner in found)
    return None


def too_deep_text(text: bytes | bytearray, value: Any) -> str | None:
    """``too_deep`` of a value that was parsed from ``text``; where that has too few brackets nothing is walked."""
    return too_deep(value) if text.count(b"{") + text.count(b"[") > MAX_LEVELS else None
