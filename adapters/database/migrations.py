"""Brings a database to the newest schema, and tells one that a newer release has written."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError


def upgrade(connection: sa.Connection, migrations: Path, directory: Path) -> None:
    """Run the migrations that are missing, in the connection's transaction.

    Args:
        migrations: Alembic's script directory.
        directory: Where earlier releases kept what a migration takes over.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["directory"] = directory
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def head(migrations: Path) -> str:
    """The newest revision of a script directory."""
    return str(ScriptDirectory(str(migrations)).get_current_head())


def newer_revision(place: str, revision: str, migrations: Path) -> str | None:
    """What is wrong with a database at a revision that is not among ours, as a sentence; None if it is one of ours."""
    scripts = ScriptDirectory(str(migrations))
    try:
        known = scripts.get_revision(revision) is not None
    except CommandError:
        known = False
    if known:
        return None
    return (
        f"{place} was written by a newer release: its schema is {revision}, this release knows those up to "
        f"{scripts.get_current_head()}. Nothing was changed. Start the newer release, or restore the backup that was "
        "made before the upgrade (deploy/UPGRADE.md)"
    )
