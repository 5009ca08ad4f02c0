"""A real PostgreSQL server for the tests: one a session, in a temporary folder, on a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from adapters.database.migrations import upgrade
from adapters.database.postgresql import PostgresServer

START_S: Final = 60.0
TEMPLATE: Final = "hatrack_template"
"""A database in which all migrations have been made; a copy of it takes some milliseconds."""
QUICK: Final = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
"""What a power cut would cost is nothing here."""


def program(name: str) -> Path | None:
    """A program of PostgreSQL; None where it is not installed. Debian keeps most of them off the PATH."""
    if (found := shutil.which(name)) is not None:
        return Path(found)
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return installed[-1] if installed else None


def require_server() -> None:
    """Skip, or fail in CI, where there is no server or no driver, and say what to install."""
    missing = []
    if program("initdb") is None:
        missing.append("a server: apt-get install postgresql")
    try:
        import psycopg  # noqa: F401
    except ModuleNotFoundError:
        missing.append("its driver: pip install 'psycopg[binary]>=3.2,<4'")
    if missing:
        why = f"PostgreSQL is not installed; {'; '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


GUARD: Final = """
read _
kill -INT "$1" 2>/dev/null
while kill -0 "$1" 2>/dev/null; do sleep 0.1; done
rm -rf "$2"
"""
"""Ends the server and removes its folder when its standard input ends: when the tests have been killed."""


@dataclass
class TestServer:
    """A server that runs.

    Attributes:
        folder: Its data, its log and its socket.
    """

    __test__ = False

    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))
    _databases: dict[Path, str] = field(default_factory=dict)

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside of a transaction."""
        import psycopg

        connection = psycopg.connect(host=str(self.folder), dbname=database, user="postgres", autocommit=True)
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description is not None else []

    def create(self, template: str = "template0") -> str:
        """A new database; returns its name."""
        name = f"t{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def url_for(self, path: Path) -> str:
        """The database that stands for a SQLite file: the same one for the same path."""
        name = self._databases.get(path)
        if name is None:
            name = self._databases[path] = self.create(TEMPLATE)
        return self.url(name)

    def forget(self, directory: Path) -> None:
        """Drop the databases that stand for files in a directory."""
        for path in [path for path in self._databases if path.is_relative_to(directory)]:
            self.drop(self._databases.pop(path))


@contextmanager
def running_server() -> Iterator[TestServer]:
    """Make a cluster, run its server, and end both. It refuses to run as root, and then runs as another user."""
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="hatrack-pg-"))
    identity: dict[str, Any] = {}
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    try:
        initdb = [str(program("initdb")), "-D", str(folder / "data"), "-U", "postgres", "-A", "trust"]
        initdb += ["-E", "UTF8", "--locale=C", "--no-sync", "-N"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, **identity)
        command = [str(program("postgres")), "-D", str(folder / "data"), "-k", str(folder), "-h", ""]
        for setting in QUICK:
            command += ["-c", setting]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **identity)
        guard = subprocess.Popen(
            ["sh", "-c", GUARD, "guard", str(process.pid), str(folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            server = TestServer(folder)
            _wait(server, process)
            yield server
        finally:
            process.send_signal(2)  # ends sessions, and does not wait for them
            process.wait(START_S)
            guard.kill()
            guard.communicate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def migrate_template(server: TestServer) -> None:
    """Make all migrations of gateway and trainer in the template."""
    from service import database as of_gateway
    from trainer import database as of_trainer

    for module in (of_gateway, of_trainer):
        backend = PostgresServer(server.url(TEMPLATE), module.SCHEMA, server.folder)
        engine = backend.create_engine(None)
        try:
            with engine.begin() as connection:
                backend.begin_migration(connection)
                upgrade(connection, module.MIGRATIONS, server.folder)
        finally:
            engine.dispose()


def _wait(server: TestServer, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    until = time.monotonic() + START_S
    while True:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((server.folder / "log").read_text()) from None
            time.sleep(0.05)
        else:
            return


def _unprivileged_user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`")
