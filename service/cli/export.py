"""`export`: a version as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli import terminal
from service.cli.terminal import AsJson
from service.client import HatrackClient
from service.config import load_settings
from service.errors import SettingsError


def export(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="brand-voice@3")],
    merged: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where to write base and adapter, merged.")
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, exists=True, help="The base's checkpoint. [default: the gateway's, if here]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a version, merged into its base, as a model that transformers and vLLM load, with a model card."""
    reference = terminal.reference_argument(version)
    if reference.version is None:
        raise typer.BadParameter(f"name a version, such as {reference.name}@1; got {version}.")
    directory, cache_dir = (base, None) if base is not None else _local_base()
    bar = terminal.bytes_bar("reading the base", "merging", quiet=as_json)
    with terminal.reporting(as_json), HatrackClient() as client, bar as progress:
        result = client.adapters.versions.export_merged(
            reference.name, reference.version, merged, base=directory, cache_dir=cache_dir, progress=progress
        )
    if as_json:
        files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in result.files]
        terminal.print_json({"version": version, "directory": str(merged), "files": files})
    else:
        size = terminal.size(sum(file.bytes for file in result.files))
        typer.echo(f"{version} is merged in {merged}: {len(result.modules)} layers, {size}; see README.md there")


def _local_base() -> tuple[Path, Path]:
    """The base of the gateway whose settings hold here, and the cache of its hashes."""
    try:
        settings = load_settings()
    except SettingsError as error:
        raise typer.BadParameter(f"give --base, since the settings here are invalid: {error}") from error
    if not (settings.base_dir / "config.json").is_file():
        raise typer.BadParameter(f"give --base: no base model at {settings.base_dir}.")
    return settings.base_dir, settings.home / "base-cache"
