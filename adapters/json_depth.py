"""Limits the nesting of JSON from outside: recursive code (pydantic, orjson) fails at some depth."""

from __future__ import annotations

from typing import Any, Final

MAX_LEVELS: Final = 100
_CONTAINERS: Final = frozenset({"", "method", "supervised", "hyperparameters", "metadata"})
"""Objects whose fields are named separately; deeper levels are reported as the field above them."""


def too_deep(value: Any, *, max_levels: int = MAX_LEVELS) -> str | None:
    """The dotted name of a field nested more than ``max_levels`` levels of objects and lists; None if there is none.

    Does not recurse, so it accepts any depth.
    """
    pending: list[tuple[str, int, Any]] = [("", 0, value)]
    while pending:
        path, level, node = pending.pop()
        if level > max_levels:
            return path
        if isinstance(node, dict):
            named = path.rpartition(".")[2] in _CONTAINERS
            for key, inner in node.items():
                below = f"{path}.{str(key)[:64]}".removeprefix(".") if named else path
                pending.append((below, level + 1, inner))
        elif isinstance(node, list):
            pending.extend((path, level + 1, inner) for inner in node)
    return None


def too_deep_text(text: bytes | bytearray, value: Any) -> str | None:
    """``too_deep`` for a value parsed from ``text``; skipped if the text has too few brackets to be too deep."""
    return too_deep(value) if text.count(b"{") + text.count(b"[") > MAX_LEVELS else None
