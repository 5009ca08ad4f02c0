"""`pull`: a version's files on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli import terminal
from service.cli.completion import complete_adapter
from service.cli.terminal import AsJson
from service.client import HatrackClient


def pull(
    version: Annotated[
        str, typer.Argument(metavar="NAME@VERSION", help="brand-voice@3", autocompletion=complete_adapter)
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", file_okay=False, help="Where to write the files.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite other files of the same names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a version's adapter_config.json, adapter_model.safetensors, settings and model card into a directory.

    Continues a download that broke off, checks the files by the version's digest, and changes nothing that is there
    unless told to. `hatrack push NAME DIR` makes the files a version again, here or at another gateway.
    """
    reference = terminal.reference_argument(version)
    if reference.version is None:
        raise typer.BadParameter(f"name a version, such as {reference.name}@1; got {version}.")
    bar = terminal.bytes_bar("asking", "downloading", quiet=as_json)
    with terminal.reporting(as_json), HatrackClient() as client, bar as progress:
        pulled = client.adapters.versions.pull(
            reference.name, reference.version, directory, force=force, progress=progress
        )
    has_weights = "adapter_model.safetensors" in pulled.files
    if as_json:
        terminal.print_json(
            {"version": version, "directory": str(directory), "files": pulled.files, "written": pulled.written}
        )
    elif not pulled.written:
        typer.echo(f"{directory} has {version} already")
    else:
        what = "" if has_weights else "; it has no weights: the base answers, with these settings"
        typer.echo(f"{version} is in {directory}: {', '.join(pulled.files)}{what}")
