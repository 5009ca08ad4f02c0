"""`status` and `version`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from service import __version__
from service.cli import terminal
from service.cli.show import print_adapters
from service.cli.terminal import AsJson
from service.client import ClientError, HatrackClient
from service.client.wire import base_names

if TYPE_CHECKING:
    from service.client.types.adapters import Adapter
    from service.client.types.gateway import Model, Readiness

TRAINER_HINTS: Final = {
    "off": "  (not configured: `hatrack serve --trainer` starts one)",
    "starting": "  (it has not answered yet)",
    "down": "  (it has stopped answering; jobs wait, requests go on)",
}


def status(as_json: AsJson = False) -> None:
    """Show whether the gateway is ready, its engine, its trainer and its adapters. Exit code 0 means ready."""
    refused: ClientError | None = None
    adapters: list[Adapter] = []
    models: list[Model] = []
    with terminal.reporting(as_json), HatrackClient() as client:
        report = client.ready()
        try:
            models, adapters = list(client.models.list()), list(client.adapters.list())
        except ClientError as error:  # readiness needs no key and is worth showing without one
            refused = error
    ready = report.get("status") == "ready"
    if as_json:
        shown = {"url": client.url, "ready": ready, "readiness": report, "models": models, "adapters": adapters}
        terminal.print_json(shown | (refused.payload() if refused else {}))
    else:
        _print_status(client.url, report, models, adapters)
        if refused:
            terminal.print_error(refused)
    if refused or not ready:
        raise typer.Exit(terminal.FAILED)


def _print_status(url: str, report: Readiness, models: list[Model], adapters: list[Adapter]) -> None:
    rows = [("gateway", f"{url}  {report.get('status', '-')}")]
    engines = report.get("engines")
    if engines:
        for engine in engines:
            shown = f"{engine['state']}  {engine['name']}, for {engine['base']}  ({engine['reason']})"
            rows.append(("engine", shown))
    elif only := report.get("engine"):
        reason = only.get("reason")
        rows.append(("engine", f"{only.get('state', '-')}{f'  ({reason})' if reason else ''}"))
    rows += [("front", f"{each['name']}  connected") for each in report.get("fronts") or ()]
    trainer = (report.get("trainer") or {}).get("state")
    if trainer:
        rows.append(("trainer", f"{trainer}{TRAINER_HINTS.get(trainer, '')}"))
    if models:
        rows.append(("base", ", ".join(base_names(models)) or str(models[0].get("id"))))
        rows.append(("adapters", str(len(adapters))))
    terminal.print_table(("", ""), rows)
    if adapters:
        typer.echo()
        print_adapters(adapters)


def version(as_json: AsJson = False) -> None:
    """Print the version of this command."""
    if as_json:
        terminal.print_json({"version": __version__})
    else:
        typer.echo(f"hatrack {__version__}")
