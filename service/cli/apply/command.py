"""`hatrack apply`: shows what differs, and makes it so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters.wording import counted
from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient

if TYPE_CHECKING:
    from service.cli.apply.plan import Change, Plan, Progress

SIGNS: Final = {"create": "+", "change": "~", "delete": "-"}


def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What shall be there, as YAML.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation; needed in scripts.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Also delete what the file's sections do not name.")] = False,
    replace_keys: Annotated[
        bool, typer.Option("--replace-keys", help="Revoke and replace keys that differ from the file.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make adapters, aliases, splits, keys and stores what a file says. Shows what differs, and asks, first.

    Applied again, it changes nothing. What the file does not name stays, unless --prune is given.
    """
    from service.cli.apply.document import read_document
    from service.cli.apply.plan import Planner

    with terminal.reporting(as_json):
        desired = read_document(file)
        with HatrackClient(project=desired.project) as client:
            plan = Planner(client, desired, file.parent, prune=prune, replace_keys=replace_keys).plan()
            if not as_json:
                _print_plan(plan, client.url)
            if plan.changes and not dry_run:
                _confirm(plan, yes=yes)
            try:
                made = 0 if dry_run else _make(client, plan, quiet=as_json)
            finally:  # also where a change fails: the new keys are not shown again
                if as_json:
                    terminal.print_json(_result(plan))
                else:
                    _print_secrets(plan.progress)
    if not as_json and made:
        typer.echo(f"{counted(made, 'change')} made.")


def _result(plan: Plan) -> dict[str, object]:
    changes = [
        {"action": change.action, "kind": change.kind, "name": change.name, "detail": change.detail}
        for change in plan.changes
    ]
    return {"changes": changes, "made": plan.progress.made, "unchanged": plan.unchanged, "keys": plan.progress.secrets}


def _print_plan(plan: Plan, url: str) -> None:
    for change in plan.changes:
        line = f"{SIGNS[change.action]} {change.kind} {change.name}  {change.detail}"
        typer.echo(terminal.clean(line))
    same = f", {plan.unchanged} unchanged" if plan.unchanged else ""
    changes = counted(len(plan.changes), "change") if plan.changes else "Nothing to change"
    typer.echo(terminal.clean(f"{changes} at {url}{same}."))


def _confirm(plan: Plan, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("stdin is not a terminal: give --yes to apply the changes, or --dry-run to see them.")
    typer.confirm(f"Make {'this change' if len(plan.changes) == 1 else 'these changes'}?", abort=True, err=True)


def _make(client: HatrackClient, plan: Plan, *, quiet: bool) -> int:
    """Make the changes in their order; one that fails ends it, and what was done stays done. Returns how many."""
    for done, change in enumerate(plan.changes):
        try:
            change.make(client, plan.progress)
            plan.progress.made += 1
        except ClientError as error:
            made = f"{done} of {counted(len(plan.changes), 'change was', 'changes were')} made"
            message = f"{change.kind} {change.name}: {error.message} ({made}; apply the file again for the rest.)"
            raise ClientError(error.status, error.code, message, error.param) from error
        if not quiet:
            typer.echo(terminal.clean(f"done: {change.kind} {change.name}{_number(change, plan.progress)}"))
    return len(plan.changes)


def _number(change: Change, progress: Progress) -> str:
    number: Any = progress.versions.get(change.name) if change.kind == "adapter" and change.action != "delete" else None
    return f"@{number}" if number else ""


def _print_secrets(progress: Progress) -> None:
    """The new keys, which cannot be shown again, each on a line of its own on stdout."""
    for name, secret in progress.secrets.items():
        typer.echo(terminal.clean(f"The key {name}, which is not shown again:"), err=True)
        typer.echo(terminal.clean(secret))
