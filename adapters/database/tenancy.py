"""One program at a time in a schema: a lock that the server keeps as long as one connection of its own lives.

Gateway and trainer keep keys, limits and queues in memory, and a second one beside them would not see what the first
one changes. The connection may be lost while the others live, and the lock with it. So each unit that writes asks
whether it is still there (`require`), within the transaction lock that whoever comes next must wait for; and `check`,
called every few seconds, notices it where nothing is written. A lock that is lost is taken again, unless somebody else
has had it meanwhile, which the mark in the schema tells.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import suppress
from typing import Final

import sqlalchemy as sa

from adapters.database.backend import DatabaseFault, TakenOver
from adapters.database.sockets import Sockets, answers

GRACE_S: Final = 3.0
"""How long the session of a program that was killed may stay known to the server, s."""
POLL_S: Final = 0.25
TAKE_S: Final = 15.0
"""How long taking a lost lock again may take; writers wait meanwhile."""
_SESSION: Final = (
    # so that a machine that is gone, or cut off, holds the lock for 25 s, and not for two hours
    "SET tcp_keepalives_idle TO 10; SET tcp_keepalives_interval TO 5; SET tcp_keepalives_count TO 3",
    # since PostgreSQL 14
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'",
)
_HOLDER: Final = (
    "FROM pg_locks AS held WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1 "
    "AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND ((held.classid::bigint << 32) | held.objid::bigint) = :lock"
)
_LOG: Final = logging.getLogger("hatrack.database")


class Tenancy:
    """The lock of one schema, and whether this process has it.

    Args:
        engine: Makes connections and keeps none.
        schema: Its name there.
        lock: The number of the lock; the same for all who want the schema.
        place: What messages call the server.
    """

    def __init__(self, engine: sa.Engine, schema: str, lock: int, place: str) -> None:
        self._engine = engine
        self._schema = schema
        self._lock = lock
        self._place = place
        self._mark = secrets.token_hex(8)
        self._connection: sa.Connection | None = None
        self._pid = 0
        self._is_taken_over = False
        self._turn = threading.Lock()
        self._sockets = Sockets()
        self._sockets.watch(engine)

    def acquire(self) -> None:
        """Take the lock; somebody who has just ended may still seem to have it.

        Raises:
            DatabaseFault: Somebody else has it.
            sqlalchemy.exc.DBAPIError: The server cannot be asked.
        """
        connection = self._connect()
        until = time.monotonic() + GRACE_S
        while not self._try(connection):
            if time.monotonic() > until:
                found = self._holder(connection)
                connection.close()
                raise DatabaseFault(
                    f"another process uses the schema `{self._schema}` in {self._place}{found}. Two would not see "
                    "each other's changes: stop the other one, or name another database (deploy/POSTGRESQL.md)"
                )
            time.sleep(POLL_S)

    def mark(self, connection: sa.Connection) -> None:
        """Write down who has the schema, in the transaction of the migrations."""
        connection.exec_driver_sql(f"COMMENT ON TABLE \"{self._schema}\".alembic_version IS 'held by {self._mark}'")

    def require(self, connection: sa.Connection) -> None:
        """In the transaction of a unit that writes: raise DatabaseFault if the lock is lost and cannot be taken again.

        Raises TakenOver if somebody else has had it.
        """
        if self._has(connection):
            return
        self.check(elsewhere=True)
        if not self._has(connection):
            raise DatabaseFault(f"the lock on the schema `{self._schema}` in {self._place} is lost")

    def _has(self, connection: sa.Connection) -> bool:
        query = sa.text(f"SELECT EXISTS (SELECT 1 {_HOLDER} AND held.pid = :pid)")
        return not self._is_taken_over and bool(connection.scalar(query, {"lock": self._lock, "pid": self._pid}))

    def check(self, *, elsewhere: bool = False) -> None:
        """Take the lock again if it is lost.

        Args:
            elsewhere: It is, even if its connection lives: the server that writes is another one since a failover.

        Raises:
            DatabaseFault: It is not to be had now.
            TakenOver: Somebody else has had it.
        """
        with self._turn:
            if self._is_taken_over:
                raise self._taken_over()
            if not elsewhere and self._lives():
                return
            self._drop()
            try:
                with self._sockets.limit(TAKE_S):
                    connection = self._connect()
                    is_ours = self._try(connection)
                    unchanged = self._read_mark(connection) == f"held by {self._mark}"
                    if not is_ours:
                        connection.close()
            except sa.exc.DBAPIError as error:
                self._drop()
                raise DatabaseFault(f"{self._place} cannot be used now, and the lock on its schema is lost") from error
            if not unchanged:
                self._is_taken_over = True
                self._drop()
                raise self._taken_over()
            if not is_ours:  # the server has not noticed yet that the connection is lost; or somebody begins
                raise DatabaseFault(f"the lock on the schema `{self._schema}` in {self._place} is lost")
            _LOG.info("the lock on the schema %s in %s was lost, and is taken again", self._schema, self._place)

    def release(self) -> None:
        """Give the lock back."""
        with self._turn:
            self._drop()
            self._engine.dispose()

    def _taken_over(self) -> TakenOver:
        return TakenOver(f"another process has taken the schema `{self._schema}` in {self._place}")

    def _connect(self) -> sa.Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        for statement in _SESSION:
            connection.exec_driver_sql(statement)
        return connection

    def _try(self, connection: sa.Connection) -> bool:
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(self._lock))):
            return False
        self._connection, self._pid = (
            connection,
            int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()),
        )
        return True

    def _lives(self) -> bool:
        # with a limit: whoever writes waits for the turn
        return self._connection is not None and answers(self._connection.connection.dbapi_connection)

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(sa.exc.DBAPIError):
                self._connection.invalidate()  # closes it, and does not ask the server to roll anything back
                self._connection.close()
            self._connection, self._pid = None, 0

    def _read_mark(self, connection: sa.Connection) -> str | None:
        table = f'"{self._schema}".alembic_version'
        query = sa.text("SELECT obj_description(to_regclass(:name), 'pg_class')")
        found = connection.scalar(query, {"name": table})
        return None if found is None else str(found)

    def _holder(self, connection: sa.Connection) -> str:
        columns = (
            "client_addr::text AS address, to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS since"
        )
        query = sa.text(f"SELECT {columns} FROM pg_stat_activity WHERE pid IN (SELECT held.pid {_HOLDER})")  # noqa: S608
        row = connection.execute(query, {"lock": self._lock}).first()
        if row is None:
            return ""
        return f" (connected from {row.address or 'the same machine'} since {row.since} UTC)"
