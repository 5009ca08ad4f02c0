"""Both kinds of databases, each opened through the gateway's `Database`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.database import Database
from tests.support.postgresql import TestServer


@pytest.fixture
def empty(postgresql: TestServer) -> Iterator[str]:
    """The name of a database without any table."""
    name = postgresql.create()
    yield name
    postgresql.drop(name)


@pytest.fixture
async def on_server(postgresql: TestServer, empty: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "hatrack.db", postgresql.url(empty))
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def in_file(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "in-file" / "hatrack.db")
    await database.open()
    yield database
    await database.close()
