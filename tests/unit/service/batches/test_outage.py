"""The answer to COMMIT is lost: a batch that is saved runs, and one whose cancellation is saved is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.postgresql import TestServer
from tests.support.postgresql_proxy import Proxy, databases_behind_proxy
from tests.unit.service.batches.batches_app import CHAT, BatchesApp, line


@pytest.fixture
async def proxy(postgresql: TestServer) -> AsyncIterator[Proxy]:
    async with databases_behind_proxy(postgresql) as proxy:
        yield proxy


@pytest.fixture
async def app(proxy: Proxy, tmp_path: Path) -> AsyncIterator[BatchesApp]:
    async with BatchesApp(tmp_path).run() as app:
        yield app


async def test_a_batch_is_made_though_the_answer_to_commit_is_lost(app: BatchesApp, proxy: Proxy) -> None:
    proxy.lose_after = b"INSERT INTO batches"
    batch = await app.ended(await app.start("one", "two"))
    assert (proxy.losses, batch["request_counts"]["completed"]) == (1, 2)


async def test_a_batch_in_doubt_begins_once_the_database_answers(app: BatchesApp, proxy: Proxy) -> None:
    file_id = await app.upload([line("one")])
    proxy.lose_after = b"INSERT INTO batches"
    proxy.is_away_after_loss = True
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    assert (await app.http.post("/v1/batches", json=body)).status_code == 503
    proxy.come_back()
    await app.database.resync.idle()
    listed = (await app.http.get("/v1/batches")).json()["data"]
    assert len(listed) == 1
    assert (await app.ended(listed[0]["id"]))["request_counts"]["completed"] == 1
    assert app.engine.asked == ["one"]


async def test_a_cancellation_in_doubt_is_made_once_the_database_answers(app: BatchesApp, proxy: Proxy) -> None:
    app.engine.held = asyncio.Event()
    batch_id = await app.start(*map(str, range(20)))
    await app.comes_to(batch_id, lambda _batch: app.engine.in_flight == 4)
    proxy.lose_after = b"UPDATE batches SET status"
    assert (await app.http.post(f"/v1/batches/{batch_id}/cancel")).status_code == 503
    await app.database.resync.idle()
    app.engine.held.set()
    batch = await app.ended(batch_id)
    assert (proxy.losses, batch["status"], len(app.engine.asked)) == (1, "cancelled", 4)
