"""What the commands share: errors to exit codes, JSON or tables, and text that is safe on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from adapters.errors import AdapterError
from adapters.names import Reference, parse_alias, parse_name, parse_reference
from adapters.sources import parse_source
from service.client import CannotConnect, ClientError

if TYPE_CHECKING:
    from service.client.types.adapters import AdapterVersion
    from service.client.types.training import Waiting

FAILED: Final = 1
CANNOT_CONNECT: Final = 3
_PIPE_COLUMNS: Final = 240
MAX_EXACT: Final = 2**53
"""Larger numbers are not told apart as floating-point numbers: of an attribute they stay text."""

SENTENCES: Final = dict.fromkeys(
    ("unknown_route", "method_not_allowed"),
    "This gateway does not know what the command asked for. It is probably older than the command: compare "
    "`hatrack --version` with `hatrack top --once`.",
)
"""What is said to a person instead of the gateway's message, which is for whoever has written the request."""

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON; errors too, on stderr.")]


def examples(*lines: str) -> str:
    """An epilog of a command's help that keeps its line breaks."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Print a ClientError and leave with its exit code: 3 where nobody answers, 1 for everything else."""
    try:
        yield
    except ClientError as error:
        print_error(error, as_json)
        raise typer.Exit(CANNOT_CONNECT if isinstance(error, CannotConnect) else FAILED) from error


def print_error(error: ClientError, as_json: bool = False) -> None:
    """Write an error to stderr, for a person or as JSON."""
    if as_json:
        typer.echo(json.dumps(error.payload(), ensure_ascii=False), err=True)
        return
    message = SENTENCES.get(error.code, error.message)
    if error.status == 401:
        message = message.partition(": send `Authorization: ")[0]  # how a key is sent is the command's business
    typer.echo(f"hatrack: {clean(message)} [{clean(error.code)}]", err=True)
    if error.status == 401:
        typer.echo(
            "Run `hatrack login URL`, or set HATRACK_KEY; the first key is in admin.key under the gateway's "
            "HATRACK_HOME.",
            err=True,
        )


def print_json(value: object) -> None:
    """Write a value to stdout as JSON."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout: as wide as the terminal, or wide enough for a pipe, where nothing may be cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not terminal)
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    Console(file=sys.stdout, width=None if terminal else _PIPE_COLUMNS, highlight=False).print(table)


@contextmanager
def bytes_bar(first: str, then: str, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar of bytes on a terminal's stderr; yields what is called with those done, and all (None: unknown).

    Args:
        first: What is said before the first call.
        then: What is said from then on, where the call does not say something else.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(first, total=None)

        def update(done: int, total: int | None, doing: str = then) -> None:
            bar.update(task, description=doing, completed=done, total=total)

        yield update


def clean(text: str) -> str:
    """The text without control characters except line feed and tab, which could control the terminal."""
    return "".join(char for char in text if char in "\n\t" or (char >= " " and not "\x7f" <= char <= "\x9f"))


def size(count: Any) -> str:
    """A number of bytes in human-readable units."""
    if not isinstance(count, int):
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def when(seconds: Any) -> str:
    """A Unix time as date and time to the minute, UTC."""
    if not isinstance(seconds, int | float):
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")


def pointers(aliases: Any) -> str:
    """An adapter's aliases, `{"live": 3}`, as `live→3`, a split as `live→3:90+4:10`; a version's as `live`."""
    if isinstance(aliases, dict):
        return " ".join(f"{name}→{_number(target)}" for name, target in sorted(aliases.items())) or "-"
    if isinstance(aliases, list):
        return " ".join(map(str, aliases)) or "-"
    return "-"


def _number(target: Any) -> str:
    if isinstance(target, dict):
        return "+".join(f"{version}:{weight}" for version, weight in target.items())
    return str(target)


def servable(version: AdapterVersion) -> str:
    """Whether a version can serve now: `ok`, or why not; `held back`: it can, and `live` does not move to it."""
    if version.get("servable") == "ok" and version.get("held_back"):
        return "held back"
    return str(version.get("servable") or "-")


def judged(version: AdapterVersion) -> str:
    """The state of a version's verdict: `fresh`, `failed`, `due: template age`; `-` if it was never judged."""
    revalidation = version.get("revalidation")
    if not revalidation:
        return "-"
    reasons = " ".join(revalidation.get("reasons") or [])
    return f"{revalidation.get('state')}: {reasons}" if reasons else str(revalidation.get("state"))


def verdict(version: AdapterVersion) -> str:
    """A version's latest verdict in one word; `-` if it was never judged."""
    verdict = version.get("verdict")
    return str(verdict.get("verdict", "-")).replace("_", " ") if verdict else "-"


def message_text(note: Any) -> str:
    """The message of a warning or a reason, which is an object with a `message` or a text."""
    return str(note.get("message", note)) if isinstance(note, dict) else str(note)


def waiting(waiting: Waiting | None) -> str:
    """What a job or an evaluation waits for, as a sentence; empty if it waits for nothing."""
    return clean(str(waiting.get("message") or "")) if waiting else ""


def reference_argument(text: str) -> Reference:
    """Parse `name`, `name@3` or `name:alias`; a mistake is a usage error (exit code 2)."""
    try:
        return parse_reference(text)
    except AdapterError as error:
        raise typer.BadParameter(error.message) from error


def source_argument(text: str) -> str:
    """Check the address of a source; a mistake is a usage error."""
    try:
        return str(parse_source(text))
    except AdapterError as error:
        raise typer.BadParameter(error.message) from error


def name_argument(text: str) -> str:
    """Check an adapter's name; a mistake is a usage error."""
    try:
        return parse_name(text)
    except AdapterError as error:
        raise typer.BadParameter(error.message) from error


def attributes_option(option: str, pairs: Sequence[str] | None) -> dict[str, str | float | bool]:
    """Parse `NAME=VALUE` pairs: a JSON number, boolean or quoted string is what it says, everything else is text."""
    attributes: dict[str, str | float | bool] = {}
    for text in pairs or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option} must be NAME=VALUE; got {text}.")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        is_exact = not isinstance(parsed, int | float) or abs(parsed) <= MAX_EXACT
        attributes[name] = parsed if is_exact and isinstance(parsed, bool | int | float | str) else value
    return attributes


def attributes_text(attributes: Mapping[str, Any]) -> str:
    """Attributes as `NAME=VALUE` pairs; text that would be read as a number or a boolean is quoted. `-` if none."""
    return " ".join(f"{name}={_shown(value)}" for name, value in attributes.items()) or "-"


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value, ensure_ascii=False)


def alias_option(text: str | None) -> str | None:
    """Check an alias; a mistake is a usage error."""
    try:
        return None if text is None else parse_alias(text)
    except AdapterError as error:
        raise typer.BadParameter(error.message) from error
