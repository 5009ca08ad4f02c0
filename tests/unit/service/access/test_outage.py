"""While the database server is away, keys are still known, what needs the database is 503, and usage is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from service.errors import Unavailable
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.record import Record
from service.usage.account import UsageAccount
from service.usage.records import usage
from tests.support.postgresql import TEMPLATE, TestServer
from tests.unit.service.access.clock import caller
from tests.unit.service.access.keys_app import KeysApp


class Outage:
    """Keys in a database of the server, which can be closed to all."""

    def __init__(self, keys_app: KeysApp, server: TestServer, name: str) -> None:
        self.keys_app, self._server, self._name = keys_app, server, name

    def begin(self) -> None:
        self._server.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        self._server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'"  # noqa: S608
        )

    def end(self) -> None:
        self._server.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")


@pytest.fixture
async def outage(postgresql: TestServer, tmp_path: Path) -> AsyncIterator[Outage]:
    name = postgresql.create(TEMPLATE)
    async with KeysApp(tmp_path, url=postgresql.url(name)).run() as keys_app:
        yield Outage(keys_app, postgresql, name)
    postgresql.drop(name)


async def test_a_key_is_known_and_a_change_is_503_in_the_apis_shape(outage: Outage) -> None:
    keys_app = outage.keys_app
    key = (await keys_app.make())["key"]
    outage.begin()
    refused: list[httpx.Response] = [
        await keys_app.http.post("/v1/keys", json={"name": "late"}),
        await keys_app.http.get("/v1/keys"),
    ]
    for answer in refused:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("server_error", "unavailable", None)
        assert error["message"] == "the metadata database cannot be reached now; try again"
    assert (await keys_app.get("/who", key)).status_code == 200
    outage.end()
    assert (await keys_app.make("late"))["name"] == "late"


async def test_usage_is_kept_and_written_when_the_server_is_back(outage: Outage) -> None:
    database = outage.keys_app.database
    account = UsageAccount(database, flush_s=3600)
    outage.begin()
    target = Target(label="smol", engine_model="smol")
    account(Record("r", "/v1/x", caller("key_a", "default"), target, usage=TokenUsage(10, 5)))
    with pytest.raises(Unavailable):
        await account.flush()
    outage.end()
    await account.flush()
    assert await database.run(lambda db: db.scalar(sa.select(usage.c.requests))) == 1
