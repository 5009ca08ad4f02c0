"""The gateway benchmark's result as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtests import chart


def draw(result: Mapping[str, Any]) -> str:
    """The SVG: six panels, for the first number of connections measured.

    Args:
        result: What ``run.py`` writes as JSON.
    """
    connections = result["rows"][0]["connections"] if result["rows"] else 0
    rows = [row for row in result["rows"] if row["connections"] == connections]
    memory = result["memory_mib"]

    def panel(title: str, key: str, *, lower: bool = True) -> chart.Panel:
        return chart.Panel(title, lower, [(row["contender"], row[key]) for row in rows])

    return chart.draw(
        "Gateways in front of an engine without delay",
        f"one core, {connections} connections, {result['machine']['cpu']}, {result['date'][:10]}",
        [
            panel("Requests per second", "requests_per_s", lower=False),
            panel("CPU per request, µs", "cpu_us_per_request"),
            panel("Added latency p99, ms, half load", "added_p99_ms"),
            panel("CPU per streamed chunk, µs", "cpu_us_per_chunk"),
            panel("Added time to first token p50, ms", "added_first_p50_ms"),
            chart.Panel("Memory, MiB", True, [(row["contender"], memory[row["contender"]]) for row in rows]),
        ],
        logarithmic=True,
    )
