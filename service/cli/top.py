"""`top`: a live view of adapters, rates, residency and the queue, from the gateway's `/metrics`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adapters.wording import counted
from service.cli import terminal
from service.cli.metrics_scrape import AdapterStats, Frame, ScrapeWindow, parse, read_frame
from service.client import ClientError, HatrackClient

ENGINE_STYLES: Final = {"ready": "green", "starting": "blue", "stalled": "yellow", "down": "red"}
LINES_ABOVE: Final = 9
"""Lines of the picture that are not adapters."""
PIPE_COLUMNS: Final = 80
UNKNOWN: Final = "–"


def top(
    interval: Annotated[float, typer.Option(min=1, max=60, help="Refresh interval in seconds.")] = 2,
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON.")] = False,
) -> None:
    """Show adapters, rates, queue and engine, live. Rates cover the last 30 seconds; press Ctrl-C to quit."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
    with terminal.reporting(as_json), HatrackClient() as client:
        window = ScrapeWindow()
        window.add(parse(client.metrics()))
        if as_json or once or not console.is_terminal:
            time.sleep(interval)
            window.add(parse(client.metrics()))
            frame = read_frame(window)
            if as_json:
                terminal.print_json(asdict(frame))
            else:
                console.print(picture(frame, client.url, max_lines=len(frame.adapters)))
            return
        _watch(console, client, window, interval)


def _watch(console: Console, client: HatrackClient, window: ScrapeWindow, interval: float) -> None:
    trouble = ""

    def draw() -> RenderableType:
        max_lines = max(1, console.size.height - LINES_ABOVE)
        return picture(read_frame(window), client.url, max_lines=max_lines, trouble=trouble)

    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(draw(), refresh=True)
                time.sleep(interval)
                try:
                    window.add(parse(client.metrics()))
                    trouble = ""
                except ClientError as error:  # it may come back: go on, and say so
                    trouble = terminal.clean(error.message)
    except KeyboardInterrupt:
        return


def picture(frame: Frame, url: str, *, max_lines: int, trouble: str = "") -> RenderableType:
    """A frame as something that rich can print.

    Args:
        max_lines: Maximum number of adapters shown.
        trouble: Why the frame is not fresh.
    """
    parts: list[RenderableType] = [_head(frame, url), _numbers(frame)]
    if trouble:
        parts.append(Text(f"cannot update: {trouble}", style="bold red"))
    parts += [Text(), _adapters(frame.adapters[:max_lines])]
    if len(frame.adapters) > max_lines:
        parts.append(Text(f"… and {len(frame.adapters) - max_lines} more", style="dim"))
    if not frame.adapters:
        parts.append(Text("no requests yet", style="dim"))
    return Group(*parts)


def _head(frame: Frame, url: str) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("hatrack", style="bold").append(f" {terminal.clean(frame.version)}  {url}  ")
    text.append(f"{terminal.clean(frame.base)}  engine ", style="dim")
    text.append(terminal.clean(frame.engine), style=f"bold {ENGINE_STYLES.get(frame.engine, 'red')}")
    text.append(f" for {_age(frame.engine_for_s)}", style="dim")
    if frame.engine_restarts:
        text.append(f", {counted(frame.engine_restarts, 'restart')}", style="yellow")
    return text


def _numbers(frame: Frame) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        grid.add_column(no_wrap=True, min_width=18, overflow="ellipsis")
    failed = Text(f"failed {frame.failed_per_s:.1f}/s", style="bold red" if frame.failed_per_s else "dim")
    refused = Text(f"refused {frame.refused_per_s:.1f}/s", style="yellow" if frame.refused_per_s else "dim")
    grid.add_row(_pair("requests", f"{frame.requests_per_s:.1f}/s"), failed, refused, _worst(frame))
    grid.add_row(
        _pair("tokens out", f"{frame.tokens_written_per_s:,.0f}/s"),
        _pair("tokens in", f"{frame.tokens_read_per_s:,.0f}/s"),
        _pair("TTFT p50", _seconds(frame.first_token_p50_s)),
        _pair("p99", _seconds(frame.first_token_p99_s)),
    )
    grid.add_row(
        _pair("waiting", _of(frame.queued, frame.queue_limit), hot=bool(frame.queued)),
        _pair("in engine", _of(frame.in_engine, frame.width)),
        _pair("slots", _of(frame.slots_in_use, frame.slots)),
        _pair("want a slot", _of(frame.adapters_waiting), hot=bool(frame.adapters_waiting)),
    )
    grid.add_row(
        _pair("loaded", _of(frame.resident, frame.resident_limit)),
        _pair("cold loads", f"{frame.cold_loads_per_s or 0:.1f}/s", hot=bool(frame.cold_loads_per_s)),
        _pair("KV cache", UNKNOWN if frame.kv_cache_ratio is None else f"{frame.kv_cache_ratio:.0%}"),
        _pair("limits hit", f"{frame.limits_hit_per_s:.1f}/s", hot=bool(frame.limits_hit_per_s)),
    )
    return grid


def _worst(frame: Frame) -> Text:
    """The most frequent error code."""
    shown = next((f"{terminal.clean(code)} {rate:.1f}/s" for code, rate in frame.errors.items()), "")
    return Text(shown, style="yellow")


def _adapters(adapters: tuple[AdapterStats, ...]) -> Table:
    columns: tuple[tuple[str, Callable[[AdapterStats], str]], ...] = (
        ("REQ/S", lambda adapter: f"{adapter.requests_per_s:.1f}"),
        ("FAIL/S", lambda adapter: f"{adapter.failed_per_s:.1f}"),
        ("TOK/S", lambda adapter: f"{adapter.tokens_per_s:,.0f}"),
        ("TTFT p50", lambda adapter: _seconds(adapter.first_token_p50_s)),
        ("p99", lambda adapter: _seconds(adapter.first_token_p99_s)),
        ("WAIT", lambda adapter: str(adapter.waiting)),
        ("RUN", lambda adapter: str(adapter.running)),
        ("LOADED", lambda adapter: {None: UNKNOWN, True: "yes", False: "no"}[adapter.loaded]),
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    projects = {adapter.project for adapter in adapters}
    # the one column that gives way on a narrow terminal, the project first
    table.add_column("ADAPTER · PROJECT" if len(projects) > 1 else "ADAPTER", overflow="ellipsis")
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(5, len(heading)))
    for adapter in adapters:
        name = adapter.adapter + (f"@{adapter.version}" if adapter.version else "")
        name += f" · {adapter.project}" if len(projects) > 1 else ""
        quiet = not (adapter.requests_per_s or adapter.waiting or adapter.running)
        cells = [
            Text(terminal.clean(name), no_wrap=True, overflow="ellipsis"),
            *(Text(show(adapter)) for _, show in columns),
        ]
        table.add_row(*cells, style="dim" if quiet else ("red" if adapter.failed_per_s else None))
    return table


def _pair(label: str, value: str, *, hot: bool = False) -> Text:
    return Text.assemble((f"{label} ", "dim"), (value, "bold yellow" if hot else "bold"))


def _of(value: int | None, limit: int | None = None) -> str:
    shown = UNKNOWN if value is None else str(value)
    return shown if limit is None else f"{shown} of {limit}"


def _seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
