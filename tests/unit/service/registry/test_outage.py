"""The database goes away in the midst of a change: what it has saved is served once it answers again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseDescription
from adapters.database import resync
from service.errors import NotFound, Unavailable
from service.registry import proving
from service.registry.catalog import AdapterEntry
from service.registry.records import AdapterWithVersions
from tests.support.adapters import AdapterFiles
from tests.support.postgresql import TEMPLATE, TestServer
from tests.support.postgresql_proxy import Proxy, proxy_before
from tests.unit.service.registry.conftest import ADMIN, RegistryApp
from tests.unit.service.registry.engine import BASE

Files = Callable[..., AdapterFiles]


@pytest.fixture
async def proxy(postgresql: TestServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    monkeypatch.setattr(resync, "RETRY_S", 0.1)
    monkeypatch.setattr(proving, "RETRY_S", 0.1)
    async with proxy_before(postgresql) as proxy:
        yield proxy


@pytest.fixture
async def app(
    proxy: Proxy, postgresql: TestServer, tmp_path: Path, base: BaseDescription
) -> AsyncIterator[RegistryApp]:
    name = postgresql.create(TEMPLATE)
    async with RegistryApp(tmp_path / "home", base, url=proxy.url(name)).run() as app:
        yield app
    postgresql.drop(name)


async def push_two(app: RegistryApp, files: Files) -> None:
    """Version 1 is live."""
    for seed, alias in ((1, "live"), (2, "candidate")):
        pushed = await app.push("voice", files(seed=seed), alias=alias)
        assert pushed.status_code == 201, pushed.text


def answering(app: RegistryApp, model: str) -> int | None:
    """The version that answers to a model's name; None: there is no such model."""
    try:
        return app.catalog.resolve(ADMIN, model).version
    except NotFound:
        return None


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another task brings about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_promotion_is_served_though_the_server_went_away_behind_it(
    app: RegistryApp, proxy: Proxy, files: Files
) -> None:
    await push_two(app, files)
    proxy.away_after = b"INSERT INTO alias_history"
    answer = await app.http.put("/v1/adapters/voice/aliases/live", json={"version": 2})
    assert (answer.status_code, proxy.losses, answering(app, "voice")) == (503, 1, 1)
    proxy.come_back()
    await app.database.resync.idle()
    assert answering(app, "voice") == 2


@pytest.mark.parametrize("is_lost", [True, False])
async def test_a_repeated_change_is_in_force_when_it_is_answered(
    app: RegistryApp, proxy: Proxy, files: Files, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """Before anything is read again in the background."""
    monkeypatch.setattr(app.database.resync, "request", lambda: None)
    app.http.event_hooks = {}  # no route's document says that the database may be away
    await push_two(app, files)

    async def repeated(statement: bytes, method: str, path: str, **body: Any) -> int:
        setattr(proxy, "lose_after" if is_lost else "away_after", statement)
        assert (await app.http.request(method, path, **body)).status_code == 503
        proxy.come_back()
        return (await app.http.request(method, path, **body)).status_code

    promoted = repeated(b"alias_history", "PUT", "/v1/adapters/voice/aliases/live", json={"version": 2})
    assert (await promoted, answering(app, "voice")) == (200, 2)
    deleted = repeated(b"UPDATE versions SET state", "DELETE", "/v1/adapters/voice/versions/1?force=true")
    assert (await deleted, answering(app, "voice@1")) == (404, None)
    assert proxy.losses == 2


async def test_a_deletion_is_followed_though_the_server_went_away_behind_it(
    app: RegistryApp, proxy: Proxy, files: Files
) -> None:
    await push_two(app, files)
    app.http.event_hooks = {}  # no route's document says that the database may be away
    proxy.away_after = b"UPDATE versions SET state"
    answer = await app.http.delete("/v1/adapters/voice/versions/2?force=true")
    assert (answer.status_code, proxy.losses, answering(app, "voice@2")) == (503, 1, 2)
    proxy.come_back()
    await app.database.resync.idle()
    assert (answering(app, "voice@2"), answering(app, "voice")) == (None, 1)


@pytest.mark.parametrize("is_lost", [True, False])
async def test_a_push_is_served_though_its_answer_was_lost(
    app: RegistryApp, proxy: Proxy, files: Files, is_lost: bool
) -> None:
    """The answer to COMMIT is lost, or it arrives, and the server is away behind it."""
    if is_lost:
        proxy.lose_after = b"INSERT INTO versions"
    else:
        proxy.away_after = b"INSERT INTO versions"
    pushed = await app.push("voice", files(), alias="live")
    assert (pushed.status_code, proxy.losses) == (503, 1)
    proxy.come_back()
    await app.database.resync.idle()
    assert answering(app, "voice") == 1


async def test_a_proof_whose_beginning_was_lost_is_begun(app: RegistryApp, proxy: Proxy, files: Files) -> None:
    proxy.lose_after = b"INSERT INTO versions"
    pushed = await app.push("voice", files(), alias="live", query="?wait=false")
    assert (pushed.status_code, proxy.losses) == (503, 1)
    await app.database.resync.idle()
    await app.registry.wait_idle()
    assert answering(app, "voice") == 1


async def test_a_proof_in_the_background_waits_for_the_database(
    app: RegistryApp, proxy: Proxy, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks, may_answer, asked = app.engine.logprobs, asyncio.Event(), asyncio.Event()

    async def slow(model: str, texts: Sequence[str]) -> list[list[float]]:
        if model != BASE:
            asked.set()
            await may_answer.wait()
        return await asks(model, texts)

    monkeypatch.setattr(app.engine, "logprobs", slow)
    pushed = await app.push("voice", files(), alias="live", query="?wait=false")
    assert pushed.status_code == 202
    await asked.wait()
    proxy.go_away()
    may_answer.set()
    with pytest.raises(Unavailable):
        await app.registry.version("default", "voice", 1)
    await asyncio.sleep(0.5)  # some attempts
    asked_so_far = len(app.engine.asked)
    proxy.come_back()
    await app.registry.wait_idle()
    assert answering(app, "voice") == 1
    assert len(app.engine.asked) == asked_so_far  # what the engine has answered is not asked again


async def test_a_proof_whose_result_is_saved_moves_no_alias_again(
    app: RegistryApp, proxy: Proxy, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to that is lost, and somebody has moved the alias before the proof looks again."""
    await push_two(app, files)
    monkeypatch.setattr(proving, "RETRY_S", 1.0)
    proxy.lose_after = b"UPDATE versions SET state"
    pushed = await app.push("voice", files(seed=3), alias="live", query="?wait=false")
    assert pushed.status_code == 202
    await until(lambda: answering(app, "voice") == 3)  # whoever lost the answer has read what was saved
    assert proxy.losses == 1
    assert (await app.http.put("/v1/adapters/voice/aliases/live", json={"version": 1})).status_code == 200
    await app.registry.wait_idle()
    assert answering(app, "voice") == 1


async def test_a_change_during_a_rebuild_of_the_catalog_is_not_overwritten(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push_two(registry_app, files)
    state = registry_app.registry._state
    entries, may_go_on, has_read = state._entries, asyncio.Event(), asyncio.Event()

    async def slow(adapters: list[AdapterWithVersions]) -> list[AdapterEntry | None]:
        if not has_read.is_set():
            has_read.set()
            built = await entries(adapters)
            await may_go_on.wait()
            return built
        return await entries(adapters)

    monkeypatch.setattr(state, "_entries", slow)
    rebuild = asyncio.create_task(state.refresh_all())
    await has_read.wait()
    moved = await registry_app.http.put("/v1/adapters/voice/aliases/live", json={"version": 2})
    assert moved.status_code == 200
    may_go_on.set()
    await rebuild
    assert answering(registry_app, "voice") == 2
