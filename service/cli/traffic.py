"""`split pin unpin`: which version answers how much, and what is kept warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from adapters.errors import AdapterError
from adapters.names import DEFAULT_ALIAS, parse_version
from service.cli import terminal
from service.cli.completion import complete_adapter
from service.cli.terminal import AsJson
from service.client import HatrackClient

if TYPE_CHECKING:
    from service.client.types.adapters import AdapterPin

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The adapter, such as brand-voice.",
        callback=terminal.name_argument,
        autocompletion=complete_adapter,
    ),
]


def split(
    name: Name,
    shares: Annotated[list[str], typer.Argument(metavar="VERSION=WEIGHT...", help="For example 3=90 4=10.")],
    alias: Annotated[str, typer.Option(help="The alias to split.", callback=terminal.alias_option)] = DEFAULT_ALIAS,
    force: Annotated[bool, typer.Option("--force", help="Include versions that are held back from live.")] = False,
    as_json: AsJson = False,
) -> None:
    """Split an alias over several versions. `hatrack promote` ends the split, `hatrack rollback` undoes it."""
    weights = _weights(shares)
    with terminal.reporting(as_json), HatrackClient() as client:
        alias_object = client.adapters.split(name, weights, alias, force=force)
    if as_json:
        terminal.print_json(alias_object)
        return
    total = sum(weights.values())
    parts = [f"{100 * weight / total:.4g}% to {name}@{version}" for version, weight in sorted(weights.items())]
    typer.echo(terminal.clean(f"{name}:{alias} now goes {', '.join(parts)}"))


def _weights(shares: list[str]) -> dict[int, int]:
    """`["3=90", "4=10"]` as weights by version; a mistake is a usage error."""
    weights: dict[int, int] = {}
    for share in shares:
        version, equals, weight = share.partition("=")
        if not equals or not (weight.isascii() and weight.isdigit()):
            raise typer.BadParameter(f"{share!r}: expected VERSION=WEIGHT, such as 3=90.")
        try:
            number = parse_version(version.removeprefix("@"))
        except AdapterError as error:
            raise typer.BadParameter(error.message) from error
        if number in weights:
            raise typer.BadParameter(f"Version {number} is given twice.")
        weights[number] = int(weight)
    return weights


def pin(name: Name, as_json: AsJson = False) -> None:
    """Keep an adapter's live version loaded in the engine, even when `live` moves."""
    with terminal.reporting(as_json), HatrackClient() as client:
        shown = client.adapters.pin(name)
    _print(shown, f"{name} is pinned: {_pinned_versions(name, shown)} kept warm", as_json)


def unpin(name: Name, as_json: AsJson = False) -> None:
    """Stop keeping the adapter loaded; the engine may unload it like any other."""
    with terminal.reporting(as_json), HatrackClient() as client:
        shown = client.adapters.unpin(name)
    _print(shown, f"{name} is not pinned", as_json)


def _pinned_versions(name: str, shown: AdapterPin) -> str:
    versions = [f"{name}@{version}" for version in shown.get("versions") or []]
    return f"{', '.join(versions)} {'is' if len(versions) == 1 else 'are'}"


def _print(shown: AdapterPin, text: str, as_json: bool) -> None:
    if as_json:
        terminal.print_json(shown)
    else:
        typer.echo(terminal.clean(text))
