"""The commands that the light client does not have: they start, stop and examine the product's own processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NoReturn

import typer
from hatrack.cli.terminal import FAILED, print_error
from hatrack.client import ClientError

CONTEXT: Final[dict[str, Any]] = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Whatever options follow, the answer is the same."""


def up(context: typer.Context) -> None:
    """Full product only: start engine, gateway and trainer."""
    _refuse(context)


def serve(context: typer.Context) -> None:
    """Full product only: start the gateway and its engine."""
    _refuse(context)


def engine(context: typer.Context) -> None:
    """Full product only: run an engine alone."""
    _refuse(context)


def agent(context: typer.Context) -> None:
    """Full product only: run an engine with the queue before it."""
    _refuse(context)


def front(context: typer.Context) -> None:
    """Full product only: answer inference for a gateway."""
    _refuse(context)


cluster: Final = typer.Typer(no_args_is_help=True, help="Full product only: agents on Ray Serve.")


@cluster.command("up", context_settings=CONTEXT)
@cluster.command("status", context_settings=CONTEXT)
@cluster.command("down", context_settings=CONTEXT)
def _cluster(context: typer.Context) -> None:
    """Full product only."""
    _refuse(context)


def down(context: typer.Context) -> None:
    """Full product only: stop the gateway."""
    _refuse(context)


def doctor(context: typer.Context) -> None:
    """Full product only: check the machine of a gateway."""
    _refuse(context)


def backup(context: typer.Context) -> None:
    """Full product only: back up a gateway's home."""
    _refuse(context)


def restore(context: typer.Context) -> None:
    """Full product only: restore a backup."""
    _refuse(context)


def gc(context: typer.Context) -> None:
    """Full product only: remove what nothing names from a gateway's home."""
    _refuse(context)


def move_database(context: typer.Context) -> None:
    """Full product only: move a gateway's database into PostgreSQL."""
    _refuse(context)


def move_store(context: typer.Context) -> None:
    """Full product only: move a gateway's adapters and files into an object store."""
    _refuse(context)


def local_base() -> tuple[Path, Path | None]:
    """No gateway's settings hold here, so the base must be named. Raises typer.BadParameter."""
    raise typer.BadParameter("give --base: the directory of the base's checkpoint on this machine.")


def _refuse(context: typer.Context) -> NoReturn:
    message = (
        f"`hatrack {context.info_name}` comes with the full product, `hatrack`. This is its light client, "
        "`hatrack-client`, which speaks to a gateway that runs elsewhere. Install the full product on the machine "
        "where the gateway runs, in an environment of its own."
    )
    print_error(ClientError(0, "full_product_needed", message), as_json="--json" in context.args)
    raise typer.Exit(FAILED)
