"""How messages count: `1 example is`, `3 examples are`."""

from __future__ import annotations


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number with its noun, and a verb where there is one.

    Args:
        one: What follows 1.
        several: What follows every other number; None for ``one`` with an s.
    """
    return f"{count:,} {one if count == 1 else f'{one}s' if several is None else several}"
