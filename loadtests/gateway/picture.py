"""The result as a picture: an SVG of bars, drawn by hand so that a benchmark needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from loadtests.gateway.report import OURS

_WIDTH, _LABELS, _VALUES, _ROW, _TOP, _GAP = 860, 130, 110, 24, 62, 46
_PANEL = (_WIDTH - 24) // 2
_OURS, _OTHERS, _INK, _PALE = "#c2410c", "#94a3b8", "#1e293b", "#64748b"


def draw(result: Mapping[str, Any]) -> str:
    """The SVG: six panels, for the first number of connections measured. Bars are logarithmic.

    Args:
        result: What ``run.py`` writes as JSON.
    """
    connections = result["rows"][0]["connections"] if result["rows"] else 0
    rows = [row for row in result["rows"] if row["connections"] == connections]
    memory = result["memory_mib"]
    panels = (
        ("Requests per second", "more is better", [(row["contender"], row["requests_per_s"]) for row in rows]),
        ("CPU per request, µs", "less is better", [(row["contender"], row["cpu_us_per_request"]) for row in rows]),
        ("Added latency p99, ms, half load", "less is better", [(r["contender"], r["added_p99_ms"]) for r in rows]),
        ("CPU per streamed chunk, µs", "less is better", [(row["contender"], row["cpu_us_per_chunk"]) for row in rows]),
        (
            "Added time to first token p50, ms",
            "less is better",
            [(row["contender"], row["added_first_p50_ms"]) for row in rows],
        ),
        ("Memory, MiB", "less is better", [(row["contender"], memory[row["contender"]]) for row in rows]),
    )
    panel_height = _GAP + _ROW * len(rows) + 14
    height = _TOP + 3 * panel_height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="17" font-weight="600">Gateways in front of an engine without delay</text>',
        f'<text x="16" y="45" fill="{_PALE}">one core, {connections} connections, {escape(result["machine"]["cpu"])}, '
        f"{result['date'][:10]}; bars are logarithmic</text>",
    ]
    for number, (title, sense, values) in enumerate(panels):
        x, y = 12 + (number % 2) * _PANEL, _TOP + (number // 2) * panel_height
        parts += _panel(x, y, title, sense, values)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(x: int, y: int, title: str, sense: str, values: Sequence[tuple[str, float | None]]) -> list[str]:
    parts = [
        f'<text x="{x + 4}" y="{y + 20}" font-weight="600">{escape(title)}</text>',
        f'<text x="{x + _PANEL - 12}" y="{y + 20}" fill="{_PALE}" font-size="11" text-anchor="end">{sense}</text>',
    ]
    room = _PANEL - _LABELS - _VALUES
    known = [value for _, value in values if value is not None and value > 0]
    least = min(known) / 2 if known else 1.0
    most = max(known, default=1.0)
    for number, (name, value) in enumerate(values):
        top = y + _GAP - 16 + number * _ROW
        middle = top + 13
        color = _OURS if name == OURS else _OTHERS
        weight = "600" if name == OURS else "400"
        parts.append(
            f'<text x="{x + _LABELS - 8}" y="{middle}" text-anchor="end" font-weight="{weight}">{escape(name)}</text>'
        )
        share = 0.0
        if value is not None and value > 0:
            share = math.log(value / least) / math.log(most / least) if most > least else 1.0
        length = max(2.0, room * share)
        parts.append(f'<rect x="{x + _LABELS}" y="{top}" width="{length:.1f}" height="17" rx="2" fill="{color}"/>')
        parts.append(f'<text x="{x + _LABELS + length + 6:.1f}" y="{middle}">{_words(value)}</text>')
    return parts


def _words(value: float | None) -> str:
    if value is None:
        return "not measured"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
