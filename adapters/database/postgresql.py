"""A database in a schema of a PostgreSQL server (13 or newer), through psycopg 3.

Everything stands in one schema of its own (`hatrack`, `hatrack_trainer`), so that gateway and trainer can share one
database, and one `pg_dump` holds both at one moment. psycopg is imported when an engine is made, and not before.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from adapters.database.backend import Backend, DatabaseFault, Fault
from adapters.database.marker import Location, Marker
from adapters.database.sockets import Sockets
from adapters.database.tenancy import Tenancy
from adapters.database.urls import describe, place_of

DRIVER: Final = "postgresql+psycopg"
MIN_VERSION: Final = 13
READERS: Final = 3
STATEMENT_TIMEOUT_S: Final = 60
"""Of one statement, with its wait for another process's transaction."""
IDLE_TIMEOUT_S: Final = 120
"""The server ends a transaction in which nothing has been asked for this long: its process hangs, or is gone."""
ANSWER_TIMEOUT_S: Final = 75.0
"""Longer than the server's own limit: only a server or a network that has gone silent takes so long."""
CONNECTION: Final[dict[str, str | int]] = {
    "application_name": "hatrack",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's parameters, where the URL does not set them."""
INSTALLATION: Final = "installation "
"""Before the id in the comment that has it."""
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
"""Stands for what PostgreSQL's text cannot hold: U+0000 and lone surrogates."""
_UNSTORABLE: Final = ("\\u0000", "\\ud", "\\uD", "NaN", "Infinity")
"""What JSON text has where a value may be one that PostgreSQL refuses."""
_DISK_FULL: Final = "53100"
_NO_PRIVILEGE: Final = "42501"
_READ_ONLY: Final = "25006"
_UNAVAILABLE: Final = ("08", "53", "57", "55P03", "40001", "40P01", "25P03", _READ_ONLY)
"""SQLSTATEs, or their classes: connection lost, out of resources, stopped or out of time, locked, to be repeated, idle
for too long in a transaction, and a server that is, or has become, a replica."""


class PostgresServer(Backend):
    """A schema of the database that a URL names. The schema is made where it is missing.

    Args:
        url: `postgresql://user:password@host:port/database`, with libpq's parameters behind `?`.
        schema: Its name there.
        directory: See `Backend`.
        state: Files and directories that hold something only where this database, or one before it, names it.
        marker: See `Backend`.
    """

    readers = READERS
    answer_timeout_s = ANSWER_TIMEOUT_S

    def __init__(
        self, url: str, schema: str, directory: Path, state: Sequence[Path] = (), marker: Marker | None = None
    ) -> None:
        self._address = url
        self._url = sa.make_url(url).set(drivername=DRIVER)
        self.marker = marker
        self.schema = schema
        self.place = describe(url)
        self.directory = directory
        self._state = tuple(state)
        # the same for all processes that write to this schema
        self._lock = _number(f"hatrack:{schema}")
        self._tenancy: Tenancy | None = None
        self._sockets = Sockets()

    def create_engine(self, json_deserializer: Callable[[str], Any] | None) -> sa.Engine:
        """A connection for the writer and one for each reader; each is tested before it is used again."""
        engine = self._engine(pool_size=1 + self.readers, max_overflow=0, json_deserializer=json_deserializer)
        self._sockets.watch(engine)
        return engine

    def _engine(self, **options: Any) -> sa.Engine:
        given = {name: value for name, value in CONNECTION.items() if name not in self._url.query}
        try:
            engine = sa.create_engine(
                self._url, connect_args=given, json_serializer=dump_json, hide_parameters=True, **options
            )
        except ModuleNotFoundError as error:
            raise DatabaseFault(
                f"{self.place} needs the package `{error.name}`: pip install 'hatrack[postgresql]'"
            ) from error
        # before SQLAlchemy's own first look at the server, which asks for the current schema
        sa.event.listen(engine.pool, "connect", self._on_connect, insert=True)
        return engine

    def _on_connect(self, connection: Any, _record: Any) -> None:
        _adapt(connection)
        with connection.cursor() as cursor:
            cursor.execute(
                f'SET search_path TO "{self.schema}"; '
                f"SET statement_timeout TO {STATEMENT_TIMEOUT_S * 1000}; "
                f"SET idle_in_transaction_session_timeout TO {IDLE_TIMEOUT_S * 1000}"
            )
        connection.commit()

    def prepare(self) -> None:
        """Nothing: the schema is made under the lock, and the database by its administrator."""

    def exists(self) -> bool:
        """A server makes no database by being asked for one."""
        return True

    def revision(self) -> str | None:
        """Raises DatabaseFault if the server cannot be reached, or refuses."""
        with self.asking() as connection:
            return self._revision(connection)

    def _revision(self, connection: sa.Connection) -> str | None:
        table = f'"{self.schema}".alembic_version'
        if connection.scalar(sa.select(sa.func.to_regclass(table).is_(None))):
            return None
        revision = connection.exec_driver_sql(f"SELECT version_num FROM {table}").scalar()  # noqa: S608 (our names)
        return None if revision is None else str(revision)

    def version(self) -> tuple[int, str]:
        """The server's version: its first number, and all of it. Raises DatabaseFault."""
        with self.asking() as connection:
            number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
            return number // 10_000, str(connection.exec_driver_sql("SHOW server_version").scalar_one())

    @contextmanager
    def asking(self) -> Iterator[sa.Connection]:
        """A connection of its own for a few questions; raises DatabaseFault where they are not answered."""
        engine = self._engine(poolclass=NullPool)
        try:
            with engine.connect() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise DatabaseFault(f"{self.place} cannot be used: {self.reason(error)}") from error
        finally:
            engine.dispose()

    def reason(self, error: Exception) -> str:
        """As the base's, without the password, should it ever be in it."""
        text = super().reason(error)
        secrets = (self._url.password, self._url.query.get("password"))
        for secret in secrets:
            if isinstance(secret, str) and secret:
                text = text.replace(secret, "***")
        return text

    def unmoved(self) -> str | None:
        """Such as one that nobody has moved the SQLite file into, or the wrong one."""
        kept = [path.name for path in self._state if _holds_something(path)]
        if not kept:
            return None
        return (
            f"{self.place} has no tables in the schema `{self.schema}`, but {self.directory} holds state "
            f"({', '.join(kept)}), which a start would remove, since that database does not name it. Run "
            "`hatrack move-database`, or restore the dump, or name the right database (deploy/POSTGRESQL.md)"
        )

    def misplaced(self) -> str | None:
        """By the hosts, the port and the database of the URL."""
        return None if self.marker is None else self.marker.disagreement(self._address)

    def foreign(self) -> str | None:
        """By the installation's id. A server that does not answer is a reason, too."""
        if self.marker is None:
            return None
        try:
            with self.asking() as connection:
                return self.marker.foreign(self.place, self.installation(connection))
        except DatabaseFault as error:
            return str(error)

    def installation(self, connection: sa.Connection) -> str | None:
        """The id of the installation whose database this is; None: it has none yet.

        It is a comment on the column of Alembic's table, which `pg_dump` keeps and only the migrations' user can write.
        """
        name = f'"{self.schema}".alembic_version'
        comment = connection.scalar(sa.select(sa.func.col_description(sa.func.to_regclass(name), 1)))
        return None if comment is None else str(comment).removeprefix(INSTALLATION)

    def settle(self, connection: sa.Connection) -> None:
        """The home first: should the transaction fail, the next start writes the home's id here."""
        if self.marker is None:
            return
        installation = self.installation(connection)
        if (problem := self.marker.foreign(self.place, installation)) is not None:
            raise DatabaseFault(problem)
        location = self.marker.read()
        known = installation or (location and location.installation) or secrets.token_hex(16)
        self.marker.write(Location(place_of(self._address), known))
        if installation is None:
            column = f'"{self.schema}".alembic_version.version_num'
            connection.exec_driver_sql(f"COMMENT ON COLUMN {column} IS '{INSTALLATION}{known}'")

    def begin(self, connection: sa.Connection, *, read_only: bool) -> None:
        """One writer at a time among all processes, each of which sees what those before it have committed.

        A unit that only reads has the state of one moment instead, and waits for nobody.
        """
        if read_only:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self._lock})")
            if self._tenancy is not None:
                self._tenancy.require(connection)

    def hold(self) -> None:
        """By a lock on a connection of its own."""
        engine = self._engine(poolclass=NullPool)
        tenancy = Tenancy(engine, self.schema, _number(f"hatrack:{self.schema}:tenancy"), self.place)
        try:
            tenancy.acquire()
        except sa.exc.DBAPIError as error:
            raise DatabaseFault(f"{self.place} cannot be used: {self.reason(error)}") from error
        self._tenancy = tenancy

    def mark(self, connection: sa.Connection) -> None:
        """As a comment on Alembic's table, whose owner is who makes the migrations."""
        if self._tenancy is not None:
            self._tenancy.mark(connection)

    def cut(self, thread: int | None = None) -> None:
        """Shuts down the socket."""
        self._sockets.cut(thread)

    def check_hold(self) -> None:
        """Asks the server."""
        if self._tenancy is not None:
            self._tenancy.check()

    def release(self) -> None:
        """Closes the connection."""
        if self._tenancy is not None:
            self._tenancy.release()
            self._tenancy = None

    def begin_migration(self, connection: sa.Connection) -> None:
        """Refuses an old server or another encoding, and makes the schema."""
        connection.exec_driver_sql("SET LOCAL statement_timeout TO 0")  # a table may be rewritten
        number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
        if number < MIN_VERSION * 10_000:
            version = connection.exec_driver_sql("SHOW server_version").scalar_one()
            raise DatabaseFault(
                f"{self.place} is PostgreSQL {version}; {MIN_VERSION} or newer is needed. Upgrade the server"
            )
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise DatabaseFault(
                f"{self.place} has the encoding {encoding}, which cannot hold all text; it must be UTF8: "
                "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self._lock})")
        if connection.scalar(sa.select(sa.func.to_regnamespace(f'"{self.schema}"').is_(None))):
            self._make_schema(connection)

    def _make_schema(self, connection: sa.Connection) -> None:
        try:
            connection.exec_driver_sql(f'CREATE SCHEMA "{self.schema}"')
        except sa.exc.ProgrammingError as error:
            if _sqlstate(error) != _NO_PRIVILEGE:
                raise
            raise DatabaseFault(
                f"{self.place}: the user may not create the schema `{self.schema}`. As the database's owner: "
                f"CREATE SCHEMA {self.schema} AUTHORIZATION the_user"
            ) from error

    def fault(self, error: sa.exc.DBAPIError) -> Fault | None:
        """By SQLSTATE; an error without one is the driver's, which has lost the connection or got none."""
        state = _sqlstate(error)
        if state == _DISK_FULL:
            return Fault.DISK_FULL
        if error.connection_invalidated or (state is not None and state.startswith(_UNAVAILABLE)):
            return Fault.UNAVAILABLE
        if isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
            return None
        is_drivers = state is None and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
        return Fault.UNAVAILABLE if is_drivers else Fault.OTHER  # such as a table that is missing

    def takes_no_writes(self, error: sa.exc.DBAPIError) -> bool:
        """It is a replica: a failover has made it one, or has made another server the primary."""
        return _sqlstate(error) == _READ_ONLY

    def disk_full_message(self) -> str:
        """Whose disk it is."""
        return "the database server's disk is full; nothing was changed"


def _number(name: str) -> int:
    """The advisory lock that a name stands for."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _sqlstate(error: sa.exc.DBAPIError) -> str | None:
    state = getattr(error.orig, "sqlstate", None)
    return None if state is None else str(state)


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(not entry.name.startswith(".") for entry in path.iterdir())
    return path.exists()


def _adapt(connection: Any) -> None:
    """Store text that PostgreSQL cannot hold with a replacement, as no row can have it; read sums as whole numbers."""
    from psycopg.adapt import Loader
    from psycopg.types.string import StrDumperUnknown

    class TextDumper(StrDumperUnknown):  # type: ignore[misc]  # of an optional package
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", REPLACEMENT) if "\0" in obj else obj)

    class NumericLoader(Loader):  # type: ignore[misc]
        """The sum of 64-bit numbers is a ``numeric``; no column is one."""

        def load(self, data: Any) -> int | float:
            text = bytes(data).decode()
            return int(text) if text.lstrip("-").isdigit() else float(text)

    connection.adapters.register_dumper(str, TextDumper)
    connection.adapters.register_loader("numeric", NumericLoader)


def dump_json(value: Any) -> str:
    """JSON text that PostgreSQL takes: in a value, U+0000 and lone surrogates are replaced, and what is not a number
    is null."""
    text = json.dumps(value)
    if any(suspicious in text for suspicious in _UNSTORABLE):
        return json.dumps(_storable(value))
    return text


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", REPLACEMENT).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value
