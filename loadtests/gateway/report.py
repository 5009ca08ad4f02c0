"""The result as Markdown: a table for each number of connections, and what became of the aims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtests.gateway.cells import LONG_BYTES

OURS, YARDSTICK, LITELLM = "Hatrack", "bare relay", "LiteLLM proxy"
AIM_OF_RELAY = 0.6
AIM_OF_LITELLM = 40.0
AIM_P99_OVER_RELAY_MS = 1.0
AIM_CHUNK_US = 25.0
_HEAD = (
    "| gateway | requests/s | of the bare relay | added latency p50 / p99, ms | CPU per request, µs | chunks/s "
    "| added first token p50 / p99, ms | CPU per chunk, µs | memory, MiB "
    f"| requests/s of {LONG_BYTES // 1000} KB | CPU per request of {LONG_BYTES // 1000} KB, µs |"
)


def table(result: Mapping[str, Any]) -> str:
    """All figures as Markdown tables.

    Args:
        result: What ``run.py`` writes as JSON.
    """
    machine, load = result["machine"], result["load_average_at_start"]
    noisy = max((cell["other_cores"] for cell in result["cells"]), default=0.0)
    lines = [
        f"{result['date'][:10]}, {machine['cpu']} ({machine['cores']} cores), Python {machine['python']}; "
        f"{result['rounds']} rounds of {result['seconds']:g} s, medians. Load average at the start {load[0]:.2f}; "
        f"in the noisiest measurement the rest of the machine used {noisy:.2f} cores.",
        "",
    ]
    for connections in dict.fromkeys(row["connections"] for row in result["rows"]):
        chosen = [row for row in result["rows"] if row["connections"] == connections]
        relay = next((row["requests_per_s"] for row in chosen if row["contender"] == YARDSTICK), None)
        lines += [f"{connections} connections:", "", _HEAD, "|---" + "|---:" * 10 + "|"]
        lines += [_line(row, relay, result["memory_mib"][row["contender"]]) for row in chosen]
        lines.append("")
    if any(row["load_limited"] for row in result["rows"]):
        lines += ["\\* engine and driver had no more to give on their core: the gateway could do more.", ""]
    lines += [f"- {name}: {what}" for name, what in result["contenders"].items()]
    lines += [f"- {name}: absent in this run" for name in result["absent"]]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any], relay: float | None, memory: float) -> str:
    rate = row["requests_per_s"]
    cells = [
        row["contender"],
        _figure(rate) + ("\\*" if row["load_limited"] else ""),
        f"{rate / relay:.2f}" if rate and relay else "–",
        _pair(row["added_p50_ms"], row["added_p99_ms"]),
        _figure(row["cpu_us_per_request"]),
        _figure(row["tokens_per_s"]),
        _pair(row["added_first_p50_ms"], row["added_first_p99_ms"]),
        _figure(row["cpu_us_per_chunk"]),
        _figure(memory),
        _figure(row["long_requests_per_s"]),
        _figure(row["cpu_us_per_long_request"]),
    ]
    if row["errors"]:
        cells[0] += f" ({row['errors']} errors)"
    return "| " + " | ".join(cells) + " |"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _pair(first: float | None, second: float | None) -> str:
    return "–" if first is None or second is None else f"{first:.2f} / {second:.2f}"


def verdict(result: Mapping[str, Any]) -> str:
    """What became of each aim, at each number of connections."""
    rows = {(row["contender"], row["connections"]): row for row in result["rows"]}
    lines = ["| aim | " + " | ".join(f"{number} connections" for number in _connections(result)) + " |"]
    lines.append("|---" + "|---" * len(_connections(result)) + "|")
    for words, judge in _AIMS:
        found = []
        for number in _connections(result):
            ours = rows.get((OURS, number))
            value, reached = judge(ours, rows, number) if ours else (None, False)
            found.append("–" if value is None else f"{value:.2f}, {'reached' if reached else '**missed**'}")
        lines.append(f"| {words} | " + " | ".join(found) + " |")
    return "\n".join(lines) + "\n"


def _connections(result: Mapping[str, Any]) -> list[int]:
    return list(dict.fromkeys(row["connections"] for row in result["rows"]))


def _times(peer: str, aim: float) -> Any:
    def judge(ours: Mapping[str, Any], rows: Mapping[Any, Any], number: int) -> tuple[float | None, bool]:
        other = rows.get((peer, number))
        if not other or not other["requests_per_s"] or not ours["requests_per_s"]:
            return None, False
        value = ours["requests_per_s"] / other["requests_per_s"]
        return value, value >= aim

    return judge


def _at_most(field: str, aim: float) -> Any:
    def judge(ours: Mapping[str, Any], rows: Mapping[Any, Any], number: int) -> tuple[float | None, bool]:
        value = ours[field]
        return value, value is not None and value <= aim

    return judge


def _at_most_over(peer: str, field: str, aim: float) -> Any:
    """At most so much more than ``peer`` in the same run."""

    def judge(ours: Mapping[str, Any], rows: Mapping[Any, Any], number: int) -> tuple[float | None, bool]:
        row = rows.get((peer, number))
        if not row or row[field] is None or ours[field] is None:
            return None, False
        value = ours[field] - row[field]
        return value, value <= aim

    return judge


_AIMS = (
    (f"requests/s, at least {AIM_OF_RELAY} of the bare relay's", _times(YARDSTICK, AIM_OF_RELAY)),
    (f"requests/s, at least {AIM_OF_LITELLM:g} times LiteLLM's", _times(LITELLM, AIM_OF_LITELLM)),
    (
        f"added latency p99 at half load, at most {AIM_P99_OVER_RELAY_MS:g} ms above the bare relay's, ms",
        _at_most_over(YARDSTICK, "added_p99_ms", AIM_P99_OVER_RELAY_MS),
    ),
    (f"at most {AIM_CHUNK_US:g} µs of CPU per streamed chunk", _at_most("cpu_us_per_chunk", AIM_CHUNK_US)),
)
