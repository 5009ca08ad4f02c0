"""`export`: a version as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli import full_product, terminal
from service.cli.terminal import AsJson
from service.client import HatrackClient


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
    directory, cache_dir = (base, None) if base is not None else full_product.local_base()
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
