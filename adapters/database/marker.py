"""Which server has the database of a home, so that the SQLite file of before is not taken for it.

A home whose database is on a PostgreSQL server has a file `database.json` where the SQLite file is, or was. That file
may still be there after `hatrack move-database`, and names nothing that came since: whoever read it would remove all
that. Without the marker the database is the file. The marker is written by the move, by each start on a server, and by
the restore of a backup without the database.

The database has the same random id as the marker (`PostgresServer.installation`), so that the tables of another
installation are not taken for this home's.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from adapters.blobs import fsync_directory
from adapters.database.backend import DatabaseFault
from adapters.database.urls import is_same_place, place_of

MARKER: Final = "database.json"
SETTINGS: Final = {"hatrack": "HATRACK_DATABASE_URL", "hatrack_trainer": "HATRACK_TRAINER_DATABASE_URL"}
"""The setting with the server's URL, by the schema."""
ON_SOME_SERVER: Final = "a PostgreSQL server"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a database is.

    Attributes:
        place: As `place_of` gives it; None: on a server that a restored backup did not name.
        installation: The database's id; None: not known.
    """

    place: str | None
    installation: str | None


class Marker:
    """The marker of one database.

    Args:
        file: Where its SQLite file is, or would be.
        schema: Its schema on a server.
    """

    def __init__(self, file: Path, schema: str) -> None:
        self.file = file
        self.path = file.with_name(MARKER)
        self.setting = SETTINGS[schema]

    def read(self) -> Location | None:
        """What it says; None: there is none, and the database is the file. Raises DatabaseFault."""
        try:
            stored = json.loads(self.path.read_bytes())
            location = Location(stored["place"], stored["installation"])
            if not (location.installation is None or location.installation.isalnum()):
                raise ValueError("`installation` is no id")
            return location
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatabaseFault(
                f"{self.path}, which says where the database of {self.path.parent} is, cannot be read: {error!r}"
            ) from error

    def write(self, location: Location) -> None:
        """Write it down, durably, unless it says so already. Raises DatabaseFault."""
        partial = self.path.with_name(f".{MARKER}.{secrets.token_hex(4)}.partial")  # two processes may start at once
        try:
            if self.path.exists() and self.read() == location:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with partial.open("w") as file:
                json.dump(asdict(location), file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self.path)
            fsync_directory(self.path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DatabaseFault(f"{self.path} cannot be written: {error.strerror}") from error

    def disagreement(self, url: str | None) -> str | None:
        """Why a database must not be used for this home, as a sentence that says what to do; None: nothing is known.

        Args:
            url: The server's URL; None: the file.
        """
        try:
            location = self.read()
        except DatabaseFault as error:
            return str(error)
        if location is None:
            return None
        known = f"the database of {self.path.parent} is on {location.place or ON_SOME_SERVER}, as {self.path} says"
        if url is None:
            return (
                f"{known}, and {self.setting} is not set. {self.file.name} does not name what came since, which would "
                f"be removed. Set {self.setting}, as the gateway has it; only to go back to {self.file.name} for good, "
                f"delete {self.path}"
            )
        place = place_of(url)
        if location.place is None or is_same_place(location.place, place):
            return None
        old_file = f", and move {self.file} away" if self.file.exists() else ""
        return (
            f"{known}, and {self.setting} names {place}. What that does not name would be removed. Set {self.setting} "
            f"to the right one; if it is the same database at a new address, delete {self.path}{old_file}, and start "
            "the gateway"
        )

    def foreign(self, place: str, installation: str | None) -> str | None:
        """Why a database on a server is another installation's, as a sentence; None: nothing is known.

        Args:
            place: What messages call it.
            installation: Its id; None: it has none yet.

        Raises:
            DatabaseFault: The marker cannot be read.
        """
        location = self.read()
        if installation is None:
            return None
        if location is None and self.file.exists():
            return (
                f"{place} is the database of an installation, and that of {self.path.parent} is {self.file}. Unset "
                f"{self.setting}, or name an empty database and run `hatrack move-database`. If it is this "
                f"installation's, and {self.path} was deleted since its address has changed, move {self.file} away"
            )
        if location is not None and location.installation not in (None, installation):
            return (
                f"{place} is the database of another installation, which does not name what {self.path.parent} "
                f"holds. Set {self.setting} to the right one; if it is this installation's, delete {self.path}"
            )
        return None
