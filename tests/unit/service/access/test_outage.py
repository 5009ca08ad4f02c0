"""While the database server is away, keys are still known, what needs the database is 503, and usage is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from adapters.database import resync
from service.database import Database
from service.errors import Unavailable
from service.http.stream import TokenUsage
from service.registry.catalog import Target
from service.telemetry.record import Record
from service.usage.account import UsageAccount
from service.usage.records import usage
from tests.support.postgresql import TEMPLATE, TestServer
from tests.support.postgresql_proxy import Proxy, proxy_before
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


class Lossy:
    """Keys in a database of the server, on the way to which answers are lost."""

    def __init__(self, proxy: Proxy, keys_app: KeysApp) -> None:
        self.proxy, self.keys_app = proxy, keys_app


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


@pytest.fixture
async def lossy(postgresql: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lossy]:
    monkeypatch.setattr(resync, "RETRY_S", 0.1)
    name = postgresql.create(TEMPLATE)
    async with proxy_before(postgresql) as proxy, KeysApp(tmp_path, url=proxy.url(name)).run() as keys_app:
        yield Lossy(proxy, keys_app)
    postgresql.drop(name)


async def test_a_key_is_revoked_though_the_answer_to_commit_is_lost(lossy: Lossy) -> None:
    keys_app = lossy.keys_app
    made = await keys_app.make()
    assert (await keys_app.get("/who", made["key"])).status_code == 200
    lossy.proxy.lose_commits = 1
    assert (await keys_app.http.delete(f"/v1/keys/{made['id']}")).status_code == 200
    assert lossy.proxy.losses == 1
    assert (await keys_app.get("/who", made["key"])).status_code == 401


@pytest.mark.parametrize("is_away", [True, False])
async def test_a_key_whose_revocation_is_in_doubt_follows_the_database_once_it_answers(
    lossy: Lossy, is_away: bool
) -> None:
    """The answer to the question whether it was saved is lost, too, or the server is away by then."""
    keys_app, revoked = lossy.keys_app, []
    keys_app.keys._on_revoked = revoked.append
    made = await keys_app.make()
    lossy.proxy.lose_commits = 1 if is_away else 2
    lossy.proxy.is_away_after_loss = is_away
    answer = await keys_app.http.delete(f"/v1/keys/{made['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    lossy.proxy.come_back()
    await keys_app.database.resync.idle()
    assert (await keys_app.get("/who", made["key"])).status_code == 401
    assert revoked == [made["id"]]
    assert (await keys_app.http.delete(f"/v1/keys/{made['id']}")).status_code == 404


async def test_the_admin_key_is_rotated_though_the_answer_to_commit_is_lost(lossy: Lossy) -> None:
    keys_app = lossy.keys_app
    lossy.proxy.lose_commits = 1
    answer = await keys_app.http.post("/v1/keys/rotate-admin")
    assert answer.status_code == 200
    assert (await keys_app.get("/who", answer.json()["key"])).status_code == 200
    assert (await keys_app.http.get("/who")).status_code == 401
    assert keys_app.admin_key == answer.json()["key"]


async def test_a_rotation_in_doubt_follows_the_database_once_it_answers(lossy: Lossy) -> None:
    keys_app = lossy.keys_app
    before = keys_app.admin_key
    lossy.proxy.lose_commits = 2  # the question's answer is lost, too
    assert (await keys_app.http.post("/v1/keys/rotate-admin")).status_code == 503
    await keys_app.database.resync.idle()
    assert keys_app.admin_key != before
    assert (await keys_app.get("/who", keys_app.admin_key)).status_code == 200
    assert (await keys_app.get("/who", before)).status_code == 401


async def test_a_rotation_that_was_not_saved_leaves_the_old_admin_key_in_its_file(lossy: Lossy) -> None:
    keys_app = lossy.keys_app
    before = keys_app.admin_key
    lossy.proxy.cut_after = b"INSERT INTO audit"
    assert (await keys_app.http.post("/v1/keys/rotate-admin")).status_code == 503
    await keys_app.database.resync.idle()
    assert keys_app.admin_key == before
    assert (await keys_app.http.get("/who")).status_code == 200


async def test_usage_whose_saving_was_cut_off_counts_once(postgresql: TestServer, tmp_path: Path) -> None:
    name = postgresql.create(TEMPLATE)
    async with proxy_before(postgresql) as proxy:
        database = Database(tmp_path / "hatrack.db", proxy.url(name))
        await database.open()
        account = UsageAccount(database, flush_s=3600)
        target = Target(label="smol", engine_model="smol")
        for _ in range(2):
            account(Record("r", "/v1/x", caller("key_a", "default"), target, usage=TokenUsage(10, 5)))
            await database.resync.idle()
            proxy.lose_commits = 1
            with pytest.raises(Unavailable):
                await account.flush()
        assert proxy.losses == 2
        await account.flush()
        chosen = sa.select(usage.c.requests, usage.c.prompt_tokens)
        assert await database.run(lambda db: [tuple(row) for row in db.execute(chosen)]) == [(2, 20)]
        await database.close()
    postgresql.drop(name)
