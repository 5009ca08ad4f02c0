"""What the command does only where the full product is installed: start, stop and examine its processes, and keep
its state.

The light client has another module in this one's place, with the same names: `deploy/client/hatrack/cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import typer

from service.cli.agent import agent
from service.cli.cluster import app as cluster
from service.cli.doctor import doctor
from service.cli.engine import engine
from service.cli.front import front
from service.cli.run import down, serve, up
from service.cli.storage import backup, gc, move_database, move_store, restore
from service.config import load_settings
from service.errors import SettingsError

__all__ = [
    "CONTEXT",
    "agent",
    "backup",
    "cluster",
    "doctor",
    "down",
    "engine",
    "front",
    "gc",
    "local_base",
    "move_database",
    "move_store",
    "restore",
    "serve",
    "up",
]

CONTEXT: Final[dict[str, Any] | None] = None
"""Settings of these commands' contexts."""


def local_base() -> tuple[Path, Path | None]:
    """The base of the gateway whose settings hold here, and the cache of its hashes. Raises typer.BadParameter."""
    try:
        settings = load_settings()
    except SettingsError as error:
        raise typer.BadParameter(f"give --base, since the settings here are invalid: {error}") from error
    if not (settings.base_dir / "config.json").is_file():
        raise typer.BadParameter(f"give --base: no base model at {settings.base_dir}.")
    return settings.base_dir, settings.home / "base-cache"
