"""Results as a picture: an SVG of bars, drawn by hand so that a benchmark needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

OURS: Final = ("Hatrack", "now")
"""The bars that are drawn in colour."""
_WIDTH, _LABELS, _VALUES, _ROW, _TOP, _GAP = 860, 130, 110, 24, 62, 60
_PANEL = (_WIDTH - 24) // 2
_OURS, _OTHERS, _INK, _PALE = "#c2410c", "#94a3b8", "#1e293b", "#64748b"


@dataclass(frozen=True)
class Panel:
    """Bars of one figure, each on this panel's own scale."""

    title: str
    lower_is_better: bool
    bars: Sequence[tuple[str, float | None]]
    """Name and value; None: not measured."""


def panels(
    rows: Mapping[str, Sequence[float | None]], sides: Sequence[str], lower_is_better: Callable[[str], bool]
) -> list[Panel]:
    """A panel for each row of a table whose columns are ``sides``; of which rows less is better, their name tells."""
    return [
        Panel(title, lower_is_better(title), list(zip(sides, values, strict=True))) for title, values in rows.items()
    ]


def draw(title: str, note: str, shown: Sequence[Panel], *, logarithmic: bool = False) -> str:
    """The SVG: two panels beside each other, as many rows as that takes; ``note`` stands under the title."""
    heights = [_height(pair) for pair in _pairs(shown)]
    height = _TOP + sum(heights)
    note += "; bars are logarithmic" if logarithmic else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="17" font-weight="600">{escape(title)}</text>',
        f'<text x="16" y="45" fill="{_PALE}">{escape(note)}</text>',
    ]
    y = _TOP
    for pair, tall in zip(_pairs(shown), heights, strict=True):
        for column, panel in enumerate(pair):
            parts += _draw_panel(12 + column * _PANEL, y, panel, logarithmic=logarithmic)
        y += tall
    return "\n".join([*parts, "</svg>"]) + "\n"


def _pairs(shown: Sequence[Panel]) -> list[Sequence[Panel]]:
    return [shown[at : at + 2] for at in range(0, len(shown), 2)]


def _height(pair: Sequence[Panel]) -> int:
    return _GAP + _ROW * max(len(panel.bars) for panel in pair) + 14


def _draw_panel(x: int, y: int, panel: Panel, *, logarithmic: bool) -> list[str]:
    sense = "less is better" if panel.lower_is_better else "more is better"
    parts = [
        f'<text x="{x + 4}" y="{y + 20}" font-weight="600">{escape(panel.title)}</text>',
        f'<text x="{x + 4}" y="{y + 35}" fill="{_PALE}" font-size="11">{sense}</text>',
    ]
    known = [value for _, value in panel.bars if value is not None and value > 0]
    for number, (name, value) in enumerate(panel.bars):
        top = y + _GAP - 16 + number * _ROW
        middle = top + 13
        color, weight = (_OURS, "600") if name in OURS else (_OTHERS, "400")
        length = max(2.0, (_PANEL - _LABELS - _VALUES) * _share(value, known, logarithmic=logarithmic))
        parts += [
            f'<text x="{x + _LABELS - 8}" y="{middle}" text-anchor="end" font-weight="{weight}">{escape(name)}</text>',
            f'<rect x="{x + _LABELS}" y="{top}" width="{length:.1f}" height="17" rx="2" fill="{color}"/>',
            f'<text x="{x + _LABELS + length + 6:.1f}" y="{middle}">{_words(value)}</text>',
        ]
    return parts


def _share(value: float | None, known: Sequence[float], *, logarithmic: bool) -> float:
    """How much of the panel's width the bar takes."""
    if value is None or value <= 0:
        return 0.0
    most = max(known)
    if not logarithmic:
        return value / most
    least = min(known) / 2
    return math.log(value / least) / math.log(most / least)


def _words(value: float | None) -> str:
    if value is None:
        return "not measured"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
