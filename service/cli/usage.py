"""`usage`: who used how much."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import HatrackClient

if TYPE_CHECKING:
    from service.client.access import UsageQuery
    from service.client.types.gateway import UsageRow

BY: Final = ("hour", "day", "project", "key", "adapter", "version")
COUNTS: Final = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens")
UNITS_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
HEADINGS: Final = {"hour": "HOUR (UTC)", "day": "DAY (UTC)"}


def usage(
    by: Annotated[
        list[str] | None, typer.Option(help=f"Group by {', '.join(BY)}; repeatable. [default: adapter]")
    ] = None,
    since: Annotated[
        str, typer.Option(help="Start: 90m, 12h, 7d or 4w ago, or a UTC date such as 2026-01-31.")
    ] = "24h",
    until: Annotated[str | None, typer.Option(help="End, in the same format as --since. [default: now]")] = None,
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key, by id.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only this adapter.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show requests and tokens. An admin key sees everything, other keys only their own."""
    names = _names(by or ["adapter"])
    group_by = ["hour" if name == "day" else name for name in names]
    query: UsageQuery = {
        "start": moment(since, "--since"),
        "end": None if until is None else moment(until, "--until"),
        "bucket": "day" if "day" in names else "hour",
        "group_by": group_by,
        "project": project,
        "key": key,
        "adapter": adapter,
    }
    with terminal.reporting(as_json), HatrackClient() as client:
        rows = list(client.usage.list(**query))
    if as_json:
        terminal.print_json(rows)
    elif rows:
        _print(names, rows)
    else:
        typer.echo("No usage in that time.")


def _names(text: list[str]) -> list[str]:
    names = {name.strip() for item in text for name in item.split(",")}
    unknown = sorted(names - set(BY))
    if unknown:
        raise typer.BadParameter(f"--by must be one of {', '.join(BY)}; got {unknown[0]!r}.")
    if {"hour", "day"} <= names:
        raise typer.BadParameter("--by accepts hour or day, not both.")
    if "version" in names:
        names.add("adapter")
    return [name for name in BY if name in names]


def moment(text: str, option: str) -> int:
    """Unix seconds of a time ago or of a date's beginning; a mistake is a usage error."""
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if ago:
        return int(time.time()) - int(ago[1]) * UNITS_S[ago[2]]
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} must be a time such as 12h or 7d, or a date; got {text!r}.") from None
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _print(names: list[str], rows: list[UsageRow]) -> None:
    table = [[*(_cell(name, row) for name in names), *(f"{row[count]:,}" for count in COUNTS)] for row in rows]
    if len(rows) > 1:
        sums = [f"{sum(row[count] for row in rows):,}" for count in COUNTS]
        table.append(["total", *("" for _ in names[1:]), *sums])
    headings = [*(HEADINGS.get(name, name.upper()) for name in names)]
    terminal.print_table([*headings, "REQUESTS", "ERRORS", "TOKENS IN", "TOKENS OUT", "IN FROM CACHE"], table)


def _cell(name: str, row: UsageRow) -> str:
    if name == "hour":
        return terminal.when(row["start"])
    if name == "day":
        return terminal.when(row["start"])[:10]
    if name == "key":
        label = row.get("key_name")
        return str(row["key"]) if label in (None, row["key"]) else f"{label} ({row['key']})"
    value = row.get(name)
    if value is None:
        return "(no such model)" if name == "adapter" else "-"
    return f"@{value}" if name == "version" else str(value)
