"""Charts as inline SVG. Horizontal lengths are percentages, so that text keeps its size on every screen.

Every text goes through markupsafe's `format`, which escapes it. Colours are classes of page.css.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from markupsafe import Markup

ROW_PX: Final = 30
AXIS_PX: Final = 24
CURVE_PX: Final = 220
Tone = Literal["candidate", "base", "live", "control"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, in the chart's unit. ``shown``: the value as text."""

    label: str
    value: float
    low: float | None
    high: float | None
    shown: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Scale:
    """From `minimum` at the left to `maximum` at the right."""

    minimum: float
    maximum: float

    def place(self, value: float) -> float:
        """The horizontal position of a value in percent, clamped to the chart."""
        share = (value - self.minimum) / (self.maximum - self.minimum) if self.maximum > self.minimum else 0.5
        return round(100 * min(max(share, 0.0), 1.0), 3)

    @property
    def ticks(self) -> list[float]:
        """Three to six round numbers on the scale."""
        step = _step(self.maximum - self.minimum)
        first, last = math.ceil(self.minimum / step - 1e-9), math.floor(self.maximum / step + 1e-9)
        return [round(step * place, 10) for place in range(first, last + 1)]


def bars(rows: Sequence[Bar], scale: Scale, *, title: str) -> Markup:
    """Horizontal bars from the left end, each under its label, with whiskers for the interval."""
    drawn = [
        Markup('<rect x="0" y="5" width="{width}%" height="20" rx="3" class="bar {tone}"/>').format(
            width=scale.place(row.value), tone=row.tone
        )
        + _whisker(row, scale)
        for row in rows
    ]
    return _chart(rows, drawn, scale, title, lines=Markup(""))


def differences(rows: Sequence[Bar], scale: Scale, *, bound: float, title: str) -> Markup:
    """Estimates with their intervals on one scale, with a line at zero and a dashed line at `bound`."""
    lines = _line(scale.place(0), ROW_PX, "zero") + (_line(scale.place(bound), ROW_PX, "bound") if bound else "")
    drawn = [_whisker(row, scale) + _dot(row, scale) for row in rows]
    return _chart(rows, drawn, scale, title, lines=lines)


def _chart(rows: Sequence[Bar], drawn: Sequence[Markup], scale: Scale, title: str, *, lines: Markup) -> Markup:
    """A row of words and a strip for each bar, and the scale below: words wrap where the page is narrow."""
    grid = Markup("").join(_line(scale.place(tick), ROW_PX, "grid") for tick in scale.ticks)
    parts = [Markup('<div class="bars" role="group" aria-label="{title}">').format(title=title)]
    for row, marks in zip(rows, drawn, strict=True):
        parts.append(
            Markup(
                '<div class="words"><b>{label}</b><span>{shown}</span></div>'
                '<svg class="chart" width="100%" height="{height}" aria-hidden="true">'
            ).format(label=row.label, shown=row.shown, height=ROW_PX)
            + grid
            + lines
            + marks
            + Markup("</svg>")
        )
    return Markup("").join([*parts, _axis(scale), Markup("</div>")])


Points = Sequence[tuple[float, float]]


def curve(training: Points, held_out: Points, *, title: str) -> Markup:
    """Losses over steps: a line for training, dots on a line for held-out data."""
    everything = [*training, *held_out]
    last = max(step for step, _ in everything)
    first = min(step for step, _ in everything)
    top = nice_ceiling(max(loss for _, loss in everything))
    floor = CURVE_PX - AXIS_PX
    ticks = [top * part / 4 for part in range(5)]
    parts = [_open(CURVE_PX, title)]
    for tick in ticks:
        y = floor - (floor - 14) * tick / top
        parts.append(
            Markup(
                '<line x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                '<text x="0" y="{text:.1f}" class="tick">{label}</text>'
            ).format(y=y, text=y - 4, label=f"{tick:g}")
        )

    def place(step: float, loss: float) -> tuple[float, float]:
        across = 100 * (step - first) / (last - first) if last > first else 50.0
        return across, floor - (floor - 14) * loss / top

    # stretched to the width of the page; the strokes keep theirs
    parts.append(
        Markup('<svg x="0" y="0" width="100%" height="{h}" viewBox="0 0 100 {h}" preserveAspectRatio="none">').format(
            h=CURVE_PX
        )
    )
    for points, tone in ((training, "training"), (held_out, "held-out")):
        if len(points) > 1:
            line = " ".join(f"{x:.2f},{y:.2f}" for x, y in (place(*point) for point in points))
            parts.append(Markup('<polyline points="{line}" class="line {tone}"/>').format(line=line, tone=tone))
    parts.append(Markup("</svg>"))
    for point in held_out:
        x, y = place(*point)
        parts.append(
            Markup('<circle cx="{x:.2f}%" cy="{y:.1f}" r="5" class="dot held-out"/>').format(
                x=min(max(x, 0.8), 99.2), y=y
            )
        )
    parts.append(
        Markup(
            '<text x="0" y="{y}" class="tick">step {first}</text>'
            '<text x="100%" y="{y}" class="tick" text-anchor="end">step {last}</text></svg>'
        ).format(y=CURVE_PX - 6, first=f"{first:g}", last=f"{last:g}")
    )
    return Markup("").join(parts)


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 or 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10, 20) if step * power >= value)


def _step(width: float) -> float:
    """A round number that goes three to six times into the width."""
    power = 10.0 ** math.floor(math.log10(width / 5))
    return next(step * power for step in (1, 2, 5, 10) if width / (step * power) <= 6)


def _open(height: int, title: str) -> Markup:
    return Markup('<svg class="chart" width="100%" height="{height}" role="img"><title>{title}</title>').format(
        height=height, title=title
    )


def _axis(scale: Scale) -> Markup:
    parts = [Markup('<svg class="chart" width="100%" height="{height}" aria-hidden="true">').format(height=AXIS_PX)]
    for tick in scale.ticks:
        x = scale.place(tick)
        anchor = "start" if x < 4 else "end" if x > 96 else "middle"
        parts.append(
            Markup('<text x="{x}%" y="16" class="tick" text-anchor="{anchor}">{label}</text>').format(
                x=x, anchor=anchor, label=f"{tick:g}".replace("-", "−")
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def _line(x: float, height: int, kind: str) -> Markup:
    return Markup('<line x1="{x}%" x2="{x}%" y1="0" y2="{height}" class="{kind}"/>').format(
        x=x, height=height, kind=kind
    )


def _dot(row: Bar, scale: Scale) -> Markup:
    """The estimate; an arrow where it is beyond the scale."""
    x, tone = scale.place(row.value), row.tone
    if row.value > scale.maximum:
        return Markup(
            '<svg x="{x}%" width="1" height="30" overflow="visible">'
            '<polygon points="-15,6 0,15 -15,24" class="dot {tone}"/></svg>'
        ).format(x=x, tone=tone)
    return Markup('<circle cx="{x}%" cy="15" r="6.5" class="dot {tone}"/>').format(x=x, tone=tone)


def _whisker(row: Bar, scale: Scale) -> Markup:
    if row.low is None or row.high is None or row.low > scale.maximum:
        return Markup("")
    return Markup(
        '<line x1="{low}%" x2="{high}%" y1="15" y2="15" class="whisker"/>'
        '<line x1="{low}%" x2="{low}%" y1="10" y2="20" class="whisker"/>'
        '<line x1="{high}%" x2="{high}%" y1="10" y2="20" class="whisker"/>'
    ).format(low=scale.place(row.low), high=scale.place(row.high))
