"""From single measurements to the figures of the report: medians over the rounds, and what a gateway adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from loadtests.gateway.cells import Cell, Phase

LOADED_CORES = 0.9
"""Above this the core of engine and driver is the limit, not the gateway."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one number of connections. Times in ms, CPU in µs; None: not measured."""

    contender: str
    connections: int
    requests_per_s: float | None
    added_p50_ms: float | None
    added_p99_ms: float | None
    cpu_us_per_request: float | None
    tokens_per_s: float | None
    added_first_p50_ms: float | None
    added_first_p99_ms: float | None
    cpu_us_per_chunk: float | None
    chunk_interval_ms: float | None
    errors: int
    load_limited: bool
    """The requests per second are bounded by engine and driver: the gateway could do more."""
    long_requests_per_s: float | None
    """With messages of ``cells.LONG_BYTES``."""
    cpu_us_per_long_request: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def rows(cells: Sequence[Cell]) -> list[Row]:
    """A row for each contender and number of connections, in the order in which they were measured."""
    seen = dict.fromkeys((cell.contender, cell.connections) for cell in cells)
    return [_row(name, connections, cells) for name, connections in seen]


def _row(name: str, connections: int, cells: Sequence[Cell]) -> Row:
    own = [cell for cell in cells if cell.contender == name and cell.connections == connections]

    def middle(stream: bool, phase: Phase, figure: Callable[[Cell], float | None]) -> float | None:
        return _median([figure(cell) for cell in own if cell.stream is stream and cell.phase == phase])

    full = [cell for cell in own if cell.phase == "saturation" and not cell.stream]
    return Row(
        contender=name,
        connections=connections,
        requests_per_s=middle(False, "saturation", lambda cell: cell.answers_per_s),
        added_p50_ms=_added(own, False, lambda cell: cell.latency_ms and cell.latency_ms[0]),
        added_p99_ms=_added(own, False, lambda cell: cell.latency_ms and cell.latency_ms[1]),
        cpu_us_per_request=middle(False, "saturation", lambda cell: cell.cpu_us_per_answer),
        tokens_per_s=middle(True, "saturation", lambda cell: cell.tokens_per_s),
        added_first_p50_ms=_added(own, True, lambda cell: cell.first_ms and cell.first_ms[0]),
        added_first_p99_ms=_added(own, True, lambda cell: cell.first_ms and cell.first_ms[1]),
        cpu_us_per_chunk=middle(True, "half", lambda cell: cell.cpu_us_per_token),
        chunk_interval_ms=middle(True, "half", lambda cell: cell.offered),
        errors=sum(cell.errors for cell in own),
        load_limited=bool(full) and median(cell.load_cores for cell in full) > LOADED_CORES,
        long_requests_per_s=middle(False, "long", lambda cell: cell.answers_per_s),
        cpu_us_per_long_request=middle(False, "long", lambda cell: cell.cpu_us_per_answer),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _added(own: Sequence[Cell], stream: bool, figure: Callable[[Cell], float | None]) -> float | None:
    """Median over the rounds of (with the gateway) − (the engine alone under the same load)."""
    found = {
        (cell.round, cell.phase): figure(cell)
        for cell in own
        if cell.stream is stream and cell.phase in ("half", "direct")
    }
    differences = []
    for (number, phase), value in found.items():
        alone = found.get((number, "direct"))
        if phase == "half" and value is not None and alone is not None:
            differences.append(value - alone)
    return _median(differences)
