"""The gateway's database on a real PostgreSQL server: transactions, locks, and what happens when it is not there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.database.backend import DatabaseFault
from adapters.database.postgresql import PostgresServer
from adapters.database.urls import describe, is_postgresql
from service.access.tables import projects
from service.database import SCHEMA, Database
from service.errors import Internal, SettingsError, Unavailable
from service.usage.records import usage
from tests.support.postgresql import TestServer
from trainer import database as of_trainer

PASSWORD = "correct-horse"
COUNTER = sa.text("SELECT monthly_budget FROM projects WHERE id = 'default'")


def add_one(db: sa.Connection) -> None:
    """Reads, and then writes what follows from it."""
    value = db.scalar(COUNTER) or 0.0
    db.execute(projects.update().where(projects.c.id == "default").values(monthly_budget=value + 1))


async def test_two_processes_that_start_at_once_migrate_once(
    postgresql: TestServer, empty: str, tmp_path: Path
) -> None:
    both = [Database(tmp_path / name, postgresql.url(empty)) for name in ("a", "b")]
    await asyncio.gather(*(database.open() for database in both))
    for database in both:
        await database.close()
    revisions = postgresql.execute("SELECT version_num FROM hatrack.alembic_version", empty)
    assert len(revisions) == 1


async def test_units_that_read_and_then_write_lose_nothing_between_processes(
    postgresql: TestServer, empty: str, on_server: Database, tmp_path: Path
) -> None:
    other = Database(tmp_path / "other", postgresql.url(empty))
    try:
        await asyncio.gather(*(database.run(add_one) for database in (on_server, other) * 40))
        assert await on_server.run(lambda db: db.scalar(COUNTER)) == 80
    finally:
        await other.close()


async def test_a_unit_that_raises_changes_nothing(on_server: Database) -> None:
    def work(db: sa.Connection) -> None:
        add_one(db)
        raise KeyError("no")

    with pytest.raises(KeyError):
        await on_server.run(work)
    assert await on_server.run(lambda db: db.scalar(COUNTER)) is None


async def test_a_reader_waits_for_no_writer_and_sees_one_state(on_server: Database) -> None:
    halfway, go_on = threading.Event(), threading.Event()

    def slow(db: sa.Connection) -> None:
        add_one(db)
        halfway.set()
        assert go_on.wait(60)

    def twice(db: sa.Connection) -> tuple[float | None, float | None]:
        first = db.scalar(COUNTER)
        go_on.set()
        written.result(60)
        return first, db.scalar(COUNTER)

    loop = asyncio.get_running_loop()
    written = asyncio.run_coroutine_threadsafe(on_server.run(slow), loop)
    assert await asyncio.to_thread(halfway.wait, 60)
    assert await on_server.run(twice, read_only=True) == (None, None)
    assert await on_server.run(lambda db: db.scalar(COUNTER), read_only=True) == 1


async def test_a_reader_cannot_write(on_server: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="read-only"):
        await on_server.run(add_one, read_only=True)


async def test_after_a_restart_of_the_server_the_next_unit_runs(
    postgresql: TestServer, empty: str, on_server: Database
) -> None:
    await on_server.run(add_one)
    end_connections(postgresql, empty)
    await on_server.run(add_one)
    assert await on_server.run(lambda db: db.scalar(COUNTER)) == 2


async def test_a_connection_that_is_lost_in_the_middle_is_503_and_nothing_is_changed(
    postgresql: TestServer, empty: str, on_server: Database
) -> None:
    def work(db: sa.Connection) -> None:
        add_one(db)
        end_connections(postgresql, empty)
        add_one(db)

    with pytest.raises(Unavailable, match="the metadata database cannot be reached now; try again") as refused:
        await on_server.run(work)
    assert (refused.value.status, refused.value.headers["retry-after"]) == (503, "5")
    assert await on_server.run(lambda db: db.scalar(COUNTER)) is None


async def test_a_server_that_has_become_a_replica_is_503_until_the_primary_is_found(
    postgresql: TestServer, empty: str, on_server: Database
) -> None:
    """As after a failover: connections are good, reads are answered, and every write is refused."""
    await on_server.run(add_one)
    postgresql.execute(f"ALTER DATABASE {empty} SET default_transaction_read_only TO on")
    end_connections(postgresql, empty)
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be reached now"):
            await on_server.run(add_one)
    assert await on_server.run(lambda db: db.scalar(COUNTER), read_only=True) == 1
    postgresql.execute(f"ALTER DATABASE {empty} RESET default_transaction_read_only")
    with pytest.raises(Unavailable):  # through the connection that the reader has left
        await on_server.run(add_one)
    await on_server.run(add_one)
    assert await on_server.run(lambda db: db.scalar(COUNTER)) == 2


async def test_a_process_that_hung_in_a_transaction_gets_503(on_server: Database) -> None:
    """The server has ended its session meanwhile."""

    def work(db: sa.Connection) -> None:
        db.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout TO 50"))
        time.sleep(0.5)
        add_one(db)

    with pytest.raises(Unavailable, match="cannot be reached now"):
        await on_server.run(work)
    await on_server.run(add_one)


async def test_another_process_that_holds_the_lock_too_long_is_503(
    postgresql: TestServer, empty: str, on_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a server that is silent: the limit is on this side."""
    monkeypatch.setattr(PostgresServer, "answer_timeout_s", 0.3)
    key = on_server.backend._lock  # type: ignore[attr-defined]
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        import psycopg

        with psycopg.connect(host=str(postgresql.folder), dbname=empty, user="postgres") as other:
            other.execute(f"SELECT pg_advisory_lock({key})")
            held.set()
            assert go_on.wait(60)

    holding = asyncio.create_task(asyncio.to_thread(hold))
    assert await asyncio.to_thread(held.wait, 60)
    refused = await asyncio.gather(*(on_server.run(add_one) for _ in range(3)), return_exceptions=True)
    assert {str(error) for error in refused} == {"the metadata database does not answer; nothing was saved"}
    assert {type(error) for error in refused} == {Unavailable}
    go_on.set()
    await holding
    monkeypatch.setattr(PostgresServer, "answer_timeout_s", 60.0)
    await on_server.run(add_one)
    assert await on_server.run(lambda db: db.scalar(COUNTER)) == 1, "callers who were told so have done it again"


async def test_without_a_server_nothing_opens_and_no_message_has_the_password(tmp_path: Path) -> None:
    url = f"postgresql://hatrack:{PASSWORD}@127.0.0.1:1/hatrack"
    database = Database(tmp_path / "hatrack.db", url)
    with pytest.raises(SettingsError, match=r"postgresql://127\.0\.0\.1:1/hatrack cannot be used: ") as refused:
        await database.open()
    with pytest.raises(Unavailable) as unavailable:
        await database.run(add_one)
    await database.close()
    assert PASSWORD not in f"{refused.value} {unavailable.value} {refused.value.__cause__!r}"
    assert not (tmp_path / "hatrack.db").exists()


async def test_a_newer_schema_is_refused_and_left_alone(postgresql: TestServer, empty: str, tmp_path: Path) -> None:
    postgresql.execute("CREATE SCHEMA hatrack", empty)
    postgresql.execute("CREATE TABLE hatrack.alembic_version (version_num VARCHAR(32) NOT NULL)", empty)
    postgresql.execute("INSERT INTO hatrack.alembic_version VALUES ('9999')", empty)
    database = Database(tmp_path / "hatrack.db", postgresql.url(empty))
    with pytest.raises(SettingsError, match="was written by a newer release: its schema is 9999"):
        await database.open()
    await database.close()
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'hatrack'"
    assert postgresql.execute(tables, empty) == [("alembic_version",)]


async def test_another_encoding_is_refused(postgresql: TestServer, tmp_path: Path) -> None:
    postgresql.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII'")
    database = Database(tmp_path / "hatrack.db", postgresql.url("ascii"))
    try:
        with pytest.raises(SettingsError, match="has the encoding SQL_ASCII"):
            await database.open()
    finally:
        await database.close()
        postgresql.drop("ascii")


async def test_a_user_who_may_not_make_the_schema_is_told_what_its_owner_must_do(
    postgresql: TestServer, empty: str, tmp_path: Path
) -> None:
    postgresql.execute("CREATE ROLE plain LOGIN")
    database = Database(tmp_path / "hatrack.db", postgresql.url(empty, "plain"))
    try:
        with pytest.raises(SettingsError, match=f"CREATE SCHEMA {SCHEMA} AUTHORIZATION"):
            await database.open()
        postgresql.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION plain", empty)
        await database.open()
        await database.run(add_one)
    finally:
        await database.close()
        postgresql.drop(empty)
        postgresql.execute("DROP ROLE plain")


async def test_gateway_and_trainer_share_a_database_and_no_number_has_32_bits(
    postgresql: TestServer, empty: str, on_server: Database, tmp_path: Path
) -> None:
    other = of_trainer.Database(tmp_path / "jobs.db", postgresql.url(empty))
    await other.open()
    await other.close()
    query = (
        "SELECT table_schema, table_name, column_name FROM information_schema.columns "
        "WHERE table_schema IN ('hatrack', 'hatrack_trainer') AND data_type IN ('integer', 'smallint', 'real')"
    )
    assert postgresql.execute(query, empty) == []
    query = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename IN ('keys', 'runs', 'alembic_version')"
    assert {row[0] for row in postgresql.execute(query, empty)} == {SCHEMA, of_trainer.SCHEMA}


async def test_sums_of_64_bits_are_whole_numbers(on_server: Database) -> None:
    counts = dict.fromkeys(("errors", "prompt_tokens", "completion_tokens", "cached_tokens", "charged_tokens"), 1 << 40)
    row = {"hour": 0, "project": "p", "key_id": "k", "adapter": "a", "requests": 1} | counts
    await on_server.run(lambda db: db.execute(usage.insert(), [row | {"version": n} for n in (1, 2)]))
    total = await on_server.run(lambda db: db.scalar(sa.select(sa.func.sum(usage.c.prompt_tokens))))
    assert (total, type(total)) == (1 << 41, int)


async def test_an_error_of_the_work_is_the_works_own(on_server: Database) -> None:
    insert = projects.insert().values(id="default", created_at=0)
    with pytest.raises(sa.exc.IntegrityError):
        await on_server.run(lambda db: db.execute(insert))
    with pytest.raises(Internal, match="UndefinedTable"):
        await on_server.run(lambda db: db.execute(sa.text("SELECT nothing FROM nowhere")))


async def test_an_error_shows_no_parameters(on_server: Database, in_file: Database) -> None:
    """They may be a secret, and logs have errors."""
    broken = sa.text("INSERT INTO nowhere VALUES (:value)")
    for database in (on_server, in_file):
        with pytest.raises(Internal) as caught:
            await database.run(lambda db: db.execute(broken, {"value": PASSWORD}))
        assert PASSWORD not in f"{caught.value} {caught.value.__cause__}"


async def test_a_full_disk_is_507(on_server: Database) -> None:
    def work(db: sa.Connection) -> None:
        db.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$"))

    with pytest.raises(on_server.disk_full_error, match="the database server's disk is full"):
        await on_server.run(work)
    assert on_server.query_error is Internal


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@db.example:5433/hatrack?sslmode=require", "postgresql://db.example:5433/hatrack"),
        ("postgres://db/hatrack", "postgresql://db/hatrack"),
        ("postgresql+psycopg://u@/hatrack?host=/run/postgresql", "postgresql:///run/postgresql/hatrack"),
        ("postgresql:///hatrack", "postgresql://localhost/hatrack"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert is_postgresql(url)
    assert describe(url) == shown == PostgresServer(url, SCHEMA, Path()).place


@pytest.mark.parametrize(
    "url",
    [
        *("mysql://db/hatrack", "postgresql://db", "postgresql://db:x/hatrack", "hatrack.db", ""),
        *("postgresql://u:12/ab@db/hatrack", "postgresql://u:a@b@db/hatrack"),  # half of the password would be shown
    ],
)
def test_what_is_no_url_of_a_database(url: str) -> None:
    assert not is_postgresql(url)


def test_the_server_is_asked_for_its_version(postgresql: TestServer, empty: str) -> None:
    server = PostgresServer(postgresql.url(empty), SCHEMA, Path())
    number, version = server.version()
    assert number >= 13
    assert version.startswith(str(number))
    assert server.revision() is None
    with pytest.raises(DatabaseFault, match="nowhere"):
        PostgresServer(postgresql.url("nowhere"), SCHEMA, Path()).revision()


PROGRAM = """
import asyncio, sys
from pathlib import Path
import service.app, service.cli.run
from service.database import Database
async def main():
    database = Database(Path(sys.argv[1]))
    await database.open()
    await database.close()
asyncio.run(main())
print([name for name in sys.modules if name.partition(".")[0].startswith("psycopg")])
"""


def test_with_sqlite_no_driver_of_postgresql_is_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "hatrack.db")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[]"


def end_connections(server: TestServer, database: str) -> None:
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
    server.execute(f"{query}'{database}'")
