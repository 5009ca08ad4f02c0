"""What a database must be able to do, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from adapters.database.marker import Marker


class Fault(StrEnum):
    """Why a unit of work could not be done, where that is not the fault of the work."""

    DISK_FULL = "disk_full"
    UNAVAILABLE = "unavailable"
    OTHER = "other"


class DatabaseFault(Exception):
    """A database cannot be opened; the message says which and why, and has no password in it."""


class TakenOver(Exception):
    """Another gateway, or trainer, has had the database meanwhile, and what this one keeps in memory is out of date."""


class Backend(ABC):
    """Where a database is, and what is particular to its kind.

    Attributes:
        place: What messages call it; never a password.
        directory: Where earlier releases kept files that a migration takes over.
        readers: How many units of work that only read may run beside the others; 0: none.
        answer_timeout_s: How long a unit may take before its caller is told that there is no answer; None: for ever.
        marker: What says where the home's database is; None: nothing does.
    """

    place: str
    directory: Path
    readers: int
    answer_timeout_s: float | None
    marker: Marker | None = None

    @abstractmethod
    def create_engine(self, json_deserializer: Callable[[str], Any] | None) -> sa.Engine:
        """Nothing is opened yet."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what must be there before the first connection."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether it is there, as far as this process can tell without a connection."""

    @abstractmethod
    def revision(self) -> str | None:
        """The revision that Alembic has recorded; None if there is none, or nothing. Writes nothing.

        Raises:
            DatabaseFault: It cannot be asked.
        """

    def unmoved(self) -> str | None:
        """Why a database without tables must not be used here, as a sentence; None if it may.

        A start removes from the disk what the database does not name, and an empty one names nothing.
        """
        return None

    @abstractmethod
    def misplaced(self) -> str | None:
        """Why the home's database is elsewhere, as a sentence; None if it is here, as far as the home says.

        Asks no server.
        """

    def foreign(self) -> str | None:
        """Why this is the database of another installation, as a sentence; None if nothing says so. Asks the server."""
        return None

    def settle(self, connection: sa.Connection) -> None:  # noqa: B027 (a file has nothing to write down)
        """Write down, in the transaction of the migrations, that the home's database is here.

        Raises:
            DatabaseFault: It is another installation's, or the home cannot be written.
        """

    @abstractmethod
    def begin(self, connection: sa.Connection, *, read_only: bool) -> None:
        """Called first in each transaction: makes it see one state, and keeps other writers out of one that writes."""

    @abstractmethod
    def begin_migration(self, connection: sa.Connection) -> None:
        """Called first in the transaction of the migrations: keeps other processes from migrating at the same time.

        Raises:
            DatabaseFault: It is a server that this release cannot use.
        """

    @abstractmethod
    def hold(self) -> None:
        """Keep other gateways, or trainers, out until `release`, unless the home's lock is enough for that.

        Raises:
            DatabaseFault: There is another one, or it cannot be asked.
        """

    def refuse_held(self) -> None:
        """Raise DatabaseFault if `hold` would, and hold nothing."""
        self.hold()
        self.release()

    @abstractmethod
    def mark(self, connection: sa.Connection) -> None:
        """Write down, in the transaction of the migrations, that this process has it."""

    @abstractmethod
    def check_hold(self) -> None:
        """Notice that what `hold` took is lost, and take it again.

        Raises:
            DatabaseFault: It is not to be had now.
            TakenOver: Another one has had it meanwhile.
        """

    @abstractmethod
    def release(self) -> None:
        """Give back what `hold` took."""

    @abstractmethod
    def fault(self, error: sa.exc.DBAPIError) -> Fault | None:
        """What an error of a unit of work means; None if it is the work's own."""

    def cut(self, thread: int | None = None) -> None:  # noqa: B027 (a file always answers)
        """Have whatever waits for the database in a thread, or in any, fail as if the connection were lost."""

    def takes_no_writes(self, error: sa.exc.DBAPIError) -> bool:
        """Whether an error says that whoever answers only reads, so that another one must be looked for."""
        return False

    def reason(self, error: Exception) -> str:
        """What the database said of an error, on one line."""
        original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        return " ".join(str(original).split())

    @abstractmethod
    def disk_full_message(self) -> str:
        """Which disk is full."""
