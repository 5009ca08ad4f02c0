"""Refused requests in the audit: counted, written once a minute, bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from service.access import refusals as module
from service.access.audit import AuditRow, page
from service.access.caller import Caller, Scope
from service.access.refusals import ACTION, MAX_SEPARATE, NO_PROJECT, NOBODY, OTHER, Refusals
from service.access.tables import audit
from service.database import Database
from service.errors import DiskFull
from tests.unit.service.access.keys_app import KeysApp

NARROW = Caller("key_1", "shop", frozenset({Scope.INFER}))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "hatrack.db")
    await opened.open()
    yield opened
    await opened.close()


async def rows(database: Database) -> list[AuditRow]:
    return await database.run(lambda db: page(db, after=None, limit=1000, action=ACTION))


async def test_a_flood_is_one_entry(database: Database) -> None:
    at = [1000.0]
    counting = Refusals(database, wall=lambda: at[0])
    for _ in range(5000):
        counting.note(401, "invalid_api_key", None, "192.0.2.1", "/v1/models", "r-1")
        at[0] += 0.01
    counting.note(403, "insufficient_scope", NARROW, "192.0.2.1", "/v1/keys", "r-2")
    counting.note(404, "not_found", NARROW, "192.0.2.1", "/v1/keys")
    assert await rows(database) == []
    await counting.flush()
    denied, failed = await rows(database)
    assert (failed.key_id, failed.project, failed.target, failed.request_id) == (
        *(NOBODY, NO_PROJECT, "invalid_api_key", "r-1"),
    )
    assert failed.detail == {
        **{"count": 5000, "peer": "192.0.2.1", "since": 1000, "until": 1049, "path": "/v1/models"},
    }
    assert (denied.key_id, denied.project, denied.target) == ("key_1", "shop", "insufficient_scope")
    assert denied.detail is not None
    assert denied.detail["count"] == 1
    await counting.flush()
    assert len(await rows(database)) == 2


async def test_many_peers_are_added_up(database: Database) -> None:
    counting = Refusals(database)
    for number in range(10_000):
        counting.note(401, "invalid_api_key", None, f"198.51.100.{number}", "/")
    assert len(counting._counted) <= MAX_SEPARATE + 1
    await counting.flush()
    found = await rows(database)
    assert len(found) == MAX_SEPARATE + 1
    counts = {str((row.detail or {})["peer"]): int((row.detail or {})["count"]) for row in found}
    assert counts[OTHER] == 10_000 - MAX_SEPARATE
    assert sum(counts.values()) == 10_000


async def test_the_addresses_of_one_ipv6_network_are_one_peer(database: Database) -> None:
    counting = Refusals(database)
    for number in range(1, 200):
        counting.note(401, "invalid_api_key", None, f"2001:db8::{number:x}", "/")
        counting.note(401, "invalid_api_key", None, f"::ffff:192.0.2.{number}", "/")
    await counting.flush()
    peers = {str((row.detail or {})["peer"]): int((row.detail or {})["count"]) for row in await rows(database)}
    assert peers["2001:db8::/64"] == 199
    assert "192.0.2.1" in peers


async def test_a_flood_without_a_key_hides_no_key_that_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 40)
    counting = Refusals(database)
    for minute in range(3):
        for number in range(1000):
            counting.note(401, "invalid_api_key", None, f"198.51.{number // 250}.{number % 250}", "/")
        counting.note(403, "insufficient_scope", NARROW, f"192.0.2.{minute}", "/v1/keys")
        await counting.flush()
    known = [row for row in await rows(database) if row.key_id == NARROW.key_id]
    assert [(row.detail or {})["peer"] for row in known] == ["192.0.2.2", "192.0.2.1", "192.0.2.0"]


async def test_the_oldest_entries_go(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 5)
    counting = Refusals(database)
    for number in range(9):
        counting.note(401, f"code_{number}", None, "peer", "/")
        await counting.flush()
    assert [row.target for row in await rows(database)] == [f"code_{number}" for number in (8, 7, 6, 5, 4)]
    others = await database.run(lambda db: db.scalar(sa.select(sa.func.count()).select_from(audit)))
    assert others == 5


async def test_what_cannot_be_written_is_written_later(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Refusals(database)
    counting.note(401, "invalid_api_key", None, "peer", "/")

    async def full(_work: object) -> None:
        raise DiskFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(database, "run", full)
        await counting.flush()
    counting.note(401, "invalid_api_key", None, "peer", "/")
    async with counting.running():
        pass
    [row] = await rows(database)
    assert (row.detail or {})["count"] == 2


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("DELETE", "/v1/keys"), ("PUT", "/who")])
async def test_a_bad_key_on_no_route_at_all_is_counted_too(keys_app: KeysApp, method: str, path: str) -> None:
    app = keys_app.app.app
    assert isinstance(app, FastAPI)
    counting = app.state.refusals = Refusals(keys_app.database)
    answer = await keys_app.http.request(method, path, headers={"authorization": "Bearer hk_wrong"})
    assert answer.status_code == 401
    assert (await keys_app.http.request(method, path)).status_code in (404, 405)
    await counting.flush()
    [row] = await rows(keys_app.database)
    assert (row.target, row.key_id) == ("invalid_api_key", NOBODY)
    assert row.detail is not None
    assert (row.detail["path"], row.detail["count"]) == (path, 1)
