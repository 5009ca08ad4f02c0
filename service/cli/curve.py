"""A curve in the terminal: the mean of what falls into each column, in eighths of a line's height."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

EIGHTHS: Final = " ▁▂▃▄▅▆▇█"


def draw(values: Sequence[float], *, width: int = 60, height: int = 6) -> list[str]:
    """Lines of text, the highest values at the top, with the largest and the smallest beside them.

    Args:
        values: In order; none gives no lines.
        width: Columns of the curve; fewer values take as many columns.
    """
    if not values:
        return []
    columns = _columns(values, width)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    levels = [round((value - low) / span * (height * 8 - 1)) + 1 for value in columns]
    lines = []
    for row in reversed(range(height)):
        line = "".join(EIGHTHS[max(0, min(8, level - 8 * row))] for level in levels)
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(f"{label} │{line}")
    return lines


def _columns(values: Sequence[float], width: int) -> list[float]:
    many = min(width, len(values))
    edges = [round(column * len(values) / many) for column in range(many + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
