"""`keys ls|create|rm|rotate-admin` and `audit`: who may do what, and who has changed what."""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from service.access.caller import Limits, Scope
from service.cli import terminal
from service.cli.terminal import AsJson, examples
from service.client import HatrackClient

if TYPE_CHECKING:
    from service.client.types.gateway import KeyObject

SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])", re.ASCII)
_DETAIL_CHARS: Final = 60

keys = typer.Typer(
    help="Manage API keys. Needs a key with the scope admin.",
    epilog=examples(
        "hatrack keys ls", "hatrack keys create shop --project acme", "hatrack keys rm key_4f0c2m9x7q1z8b3d"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@keys.command(epilog=examples("hatrack keys ls", "hatrack keys ls --project acme --json | jq -r '.[].id'"))
def ls(
    project: Annotated[str | None, typer.Option(help="Only this project's keys.")] = None, as_json: AsJson = False
) -> None:
    """List the API keys by id. The secrets are not stored and cannot be shown."""
    with terminal.reporting(as_json), HatrackClient() as client:
        listed = list(client.keys.list(project))
    if as_json:
        terminal.print_json(listed)
    elif listed:
        columns = ("ID", "NAME", "KEY", "PROJECT", "SCOPES", "ADAPTERS", "STORES", "FILTERS", "LIMITS", "EXPIRES")
        terminal.print_table(columns, [_row(key) for key in listed])
    else:
        typer.echo("No keys except the admin key. Create one: hatrack keys create NAME --project PROJECT")


def _row(key: KeyObject) -> tuple[str, ...]:
    limits = key.get("limits") or {}
    ends = key.get("expires_at")
    past = isinstance(ends, int) and ends <= time.time()
    return (
        str(key.get("id")),
        str(key.get("name")),
        str(key.get("hint", "-")),
        str(key.get("project")),
        " ".join(map(str, key.get("scopes") or [])),
        _globs(key.get("adapters")),
        _globs(key.get("stores")),
        terminal.attributes_text(key.get("filters") or {}),
        " ".join(f"{name}={value}" for name, value in limits.items()) or "-",
        "never" if ends is None else terminal.when(ends) + (" (past)" if past else ""),
    )


def _globs(globs: Any) -> str:
    if globs is None:
        return "all"
    return " ".join(map(str, globs)) or "none"


def _limits(options: list[str]) -> dict[str, int]:
    """`["concurrent=2"]` as `{"concurrent": 2}`. Raises typer.BadParameter."""
    limits = {}
    for text in options:
        name, _, number = text.partition("=")
        if name not in Limits.model_fields or not number.isascii() or not number.isdigit():
            raise typer.BadParameter(
                f"{text!r}: expected NAME=NUMBER, where NAME is one of {', '.join(Limits.model_fields)}.",
                param_hint="--limit",
            )
        limits[name] = int(number)
    return limits


def _expiry(text: str | None) -> int | None:
    """`30d` from now, or the start of a day in UTC (`2027-01-31`), as Unix seconds. Raises typer.BadParameter."""
    if text is None:
        return None
    if span := _SPAN.fullmatch(text):
        return int(time.time()) + int(span[1]) * SECONDS[span[2]]
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: expected 90m, 12h, 30d, 4w or a date such as 2027-01-31.", param_hint="--expires"
        ) from None


@keys.command(
    epilog=examples(
        "hatrack keys create shop --project acme",
        "hatrack keys create shop --project acme --adapter 'brand-*' --limit tokens_per_minute=1000 --expires 30d",
        "hatrack keys create ci --project acme --scope infer --scope adapters",
        "hatrack keys create c-1017 --adapter support --filter customer=c-1017 --expires 12h",
        "HATRACK_KEY=$(hatrack keys create me --project acme) hatrack chat brand-voice",
    )
)
def create(
    name: Annotated[str, typer.Argument(help="Who or what will use the key.")],
    project: Annotated[
        str | None,
        typer.Option(help="The key's project, created with its first key [default: HATRACK_PROJECT, else default]."),
    ] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="What the key may do; repeatable [default: infer].")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Adapters that the key may use; repeatable [default: all].")
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Vector stores that the key may read; repeatable [default: all]."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="Restrict every search to documents with this attribute, or `*`; repeatable [default: none].",
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help=f"{', '.join(Limits.model_fields)}; repeatable [default: none]."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="90m, 12h, 30d, 4w or a date such as 2027-01-31 [default: never]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it to stdout. It cannot be shown again."""
    limits, expires_at = _limits(limit or []), _expiry(expires)
    with terminal.reporting(as_json), HatrackClient() as client:
        made = client.keys.create(
            name,
            project=project,
            scopes=[each.value for each in scope] if scope else None,
            adapters=adapter or None,
            stores=store or None,
            filters=terminal.attributes_option("--filter", filters) or None,
            limits=limits or None,
            expires_at=expires_at,
        )
    if as_json:
        terminal.print_json(made)
        return
    summary = (
        f"{made['id']} may {' '.join(made['scopes'])} in project {made['project']}. Save it now: it is not shown again."
    )
    typer.echo(terminal.clean(summary), err=True)
    typer.echo(terminal.clean(made["key"]))


@keys.command(epilog=examples("hatrack keys rm key_4f0c2m9x7q1z8b3d", "hatrack keys rm key_4f0c2m9x7q1z8b3d --yes"))
def rm(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as shown by `keys ls`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Revoke a key: its next request is refused. Asks for confirmation on a terminal."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Revoke {key_id}?", abort=True, err=True)
    with terminal.reporting(as_json), HatrackClient() as client:
        deleted = client.keys.delete(key_id)
    if as_json:
        terminal.print_json(deleted)
    else:
        typer.echo(terminal.clean(f"Revoked {key_id}."))


@keys.command(name="rotate-admin", epilog=examples("hatrack keys rotate-admin", "hatrack keys rotate-admin --yes"))
def rotate_admin(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False, as_json: AsJson = False
) -> None:
    """Replace the admin key, write the new one to admin.key and print it to stdout."""
    if not yes and sys.stdin.isatty():
        typer.confirm("Revoke the admin key and the keys of jobs that it started?", abort=True, err=True)
    with terminal.reporting(as_json), HatrackClient() as client:
        made = client.keys.rotate_admin()
    if as_json:
        terminal.print_json(made)
        return
    typer.echo(
        "The old admin key is revoked; the new one, also in admin.key under the gateway's HATRACK_HOME:", err=True
    )
    typer.echo(terminal.clean(made["key"]))


def audit(
    project: Annotated[str | None, typer.Option(help="Only this project's changes.")] = None,
    action: Annotated[str | None, typer.Option(help="Only these changes, such as alias.promote.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="Maximum number of entries.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, newest first. Needs a key with the scope admin."""
    with terminal.reporting(as_json), HatrackClient() as client:
        entries = list(client.audit.list(project=project, action=action, limit=count))
    if as_json:
        terminal.print_json(entries)
        return
    rows = []
    for entry in entries:
        who = f"{entry.get('key_name') or entry.get('key_id')}"
        detail = json.dumps(entry["detail"], ensure_ascii=False) if entry.get("detail") else "-"
        short = detail if len(detail) <= _DETAIL_CHARS else detail[: _DETAIL_CHARS - 1] + "…"
        when = terminal.when(entry.get("created_at"))
        rows.append((when, who, str(entry.get("project")), str(entry.get("action")), str(entry.get("target")), short))
    terminal.print_table(("WHEN", "WHO", "PROJECT", "ACTION", "TARGET", "DETAIL"), rows)
