"""Whether the settings name the databases that belong to a home, before anything is done by what these name.

A command that is run without the gateway's settings, such as from cron, would read the SQLite file that was left by a
move, and take all that came since for garbage.
"""

from __future__ import annotations

from adapters.database.postgresql import PostgresServer
from service.config import Settings
from service.storage import layout
from service.storage.errors import BackupError
from service.training.config import DATABASE as TRAINER_DATABASE


def require_agreement(settings: Settings, *, addresses: bool = True) -> None:
    """Check the settings against the home's markers; asks no server.

    Args:
        addresses: Check also that a server which is named is the one of the marker. Who removes nothing by what the
            database says need not: the same server may have another name where the command is run.

    Raises:
        BackupError: They do not agree.
    """
    for backend, _ in layout.databases(settings, trainer_anywhere=True).values():
        if isinstance(backend, PostgresServer) and not addresses:
            continue
        if (problem := backend.misplaced()) is not None:
            raise BackupError(f"{problem}. Nothing was done")


def require_own(settings: Settings) -> None:
    """Check also that a database on a server is this installation's, which it has been since a start on it.

    Raises:
        BackupError: It is not, it is not known to be, or it does not answer.
    """
    require_agreement(settings)
    for name, (backend, _) in layout.databases(settings, trainer_anywhere=True).items():
        if name == TRAINER_DATABASE and not any(layout.folders(settings.home / parent) for parent in layout.RUNS):
            continue  # of a trainer with a home of its own: nothing here can be called garbage by it
        if (problem := backend.foreign()) is not None:
            raise BackupError(f"{problem}. Nothing was done")
        if isinstance(backend, PostgresServer) and backend.marker is not None:
            location = backend.marker.read()
            if location is None or location.installation is None:
                program = "trainer" if name == TRAINER_DATABASE else "gateway"
                raise BackupError(
                    f"whether {backend.place} is this installation's is not known, since {backend.marker.path} does "
                    f"not say so yet, and nothing was done. Start the {program} on it once"
                )
