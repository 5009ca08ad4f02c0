"""The registry's states, seen through its routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from adapters.base import BaseDescription
from service.errors import Conflict, EngineUnavailable, ModelNotFound, Unavailable
from service.registry.proving import ENGINE_FAILURES
from tests.support.adapters import AdapterFiles, describe_base, make_base
from tests.unit.service.registry.conftest import ADMIN, RegistryApp
from tests.unit.service.registry.engine import BASE

Files = Callable[..., AdapterFiles]


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def digest_of_refused(registry_app: RegistryApp, files: AdapterFiles) -> str:
    """The digest of an adapter, found by a push that the engine does not answer."""
    registry_app.engine.down = True
    before = set(registry_app.store.digests())
    assert code(await registry_app.push("finding-out", files)) == (503, "engine_unavailable")
    registry_app.engine.down = False
    return (set(registry_app.store.digests()) - before).pop()


async def test_without_waiting_it_becomes_ready_and_live(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1), query="?wait=false")
    await registry_app.registry.wait_idle()
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 1


async def test_a_proof_that_a_stop_cut_off_is_taken_up_at_the_next_start(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    home = tmp_path / "cut"
    async with RegistryApp(home, base).run() as first:
        first.engine.down = True
        assert (await first.push("voice", files(seed=1), query="?wait=false", alias="beta")).status_code == 202
    async with RegistryApp(home, base).run() as second:
        await second.registry.wait_idle()
        assert second.catalog.resolve(ADMIN, "voice:beta").version == 1


async def test_a_restart_loses_nothing_and_another_base_serves_none_of_it(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    home = tmp_path / "kept"
    async with RegistryApp(home, base).run() as first:
        pushed = (await first.push("voice", files(seed=1))).json()
    other = describe_base(make_base(tmp_path / "other", seed=9), served_name=BASE)
    async with RegistryApp(home, other).run() as second:
        shown = (await second.http.get("/v1/adapters/voice/versions/1")).json()
        assert (shown["state"], shown["servable"]) == ("ready", "other_base")
        with pytest.raises(Conflict):
            second.catalog.resolve(ADMIN, "voice")
    async with RegistryApp(home, base).run() as third:
        assert third.catalog.resolve(ADMIN, "voice").digest == pushed["digest"]
        assert third.engine.asked == []


async def test_rollback_walks_back_along_the_history(registry_app: RegistryApp, files: Files) -> None:
    for seed in (1, 2, 3):
        await registry_app.push("voice", files(seed=seed))
    url = "/v1/adapters/voice/aliases/live"
    assert code(await registry_app.http.post(f"{url}/rollback")) == (409, "no_earlier_version")
    for number in (2, 3):
        assert (await registry_app.http.put(url, json={"version": number})).json()["version"] == number
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 3
    assert (await registry_app.http.post(f"{url}/rollback")).json()["version"] == 2
    assert (await registry_app.http.post(f"{url}/rollback")).json()["version"] == 1
    assert code(await registry_app.http.post(f"{url}/rollback")) == (409, "no_earlier_version")
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 1
    moves = (await registry_app.http.get(url)).json()["history"]
    assert [(move["version"], move["action"]) for move in moves] == [
        *((1, "rollback"), (2, "rollback"), (3, "promote"), (2, "promote"), (1, "push")),
    ]


async def test_a_rollback_passes_over_what_was_deleted(registry_app: RegistryApp, files: Files) -> None:
    url = "/v1/adapters/voice/aliases/live"
    for seed in (1, 2, 3):
        await registry_app.push("voice", files(seed=seed), alias="live")
    assert (await registry_app.http.delete("/v1/adapters/voice/versions/2")).status_code == 204
    assert (await registry_app.http.post(f"{url}/rollback")).json()["version"] == 1


async def test_the_pointer_stays_where_the_target_cannot_be_warmed(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    second = (await registry_app.push("voice", files(seed=2))).json()
    url = "/v1/adapters/voice/aliases/live"
    registry_app.engine.not_finite.add(second["digest"])
    assert code(await registry_app.http.put(url, json={"version": 2})) == (500, "adapter_not_finite")
    registry_app.engine.down = True
    assert code(await registry_app.http.put(url, json={"version": 2})) == (503, "engine_unavailable")
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 1
    registry_app.engine.down = False
    registry_app.engine.not_finite.clear()
    registry_app.engine.asked.clear()
    await registry_app.http.put(url, json={"version": 2})
    assert registry_app.engine.asked == [second["digest"]]
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 2


async def test_deleting_an_alias_keeps_the_version(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    url = "/v1/adapters/voice/aliases/live"
    assert (await registry_app.http.delete(url)).status_code == 200
    assert code(await registry_app.http.get(url)) == (404, "alias_not_found")
    assert code(await registry_app.http.delete(url)) == (404, "alias_not_found")
    assert (await registry_app.http.delete("/v1/adapters/voice/versions/1")).status_code == 204


async def test_deleted_is_unroutable_at_once_and_its_files_go_with_the_engine(
    registry_app: RegistryApp, files: Files
) -> None:
    adapter = files(seed=1)
    digest = (await registry_app.push("voice", adapter)).json()["digest"]
    await registry_app.push("twin", adapter)
    assert code(await registry_app.http.delete("/v1/adapters/voice/versions/1")) == (422, "version_in_use")
    assert code(await registry_app.http.delete("/v1/adapters/voice")) == (422, "version_in_use")
    assert (await registry_app.http.delete("/v1/adapters/voice?force=true")).status_code == 204
    with pytest.raises(ModelNotFound):
        registry_app.catalog.resolve(ADMIN, "voice")
    assert await registry_app.registry.collect() == []
    assert (await registry_app.http.delete("/v1/adapters/twin/versions/1?force=true")).status_code == 204
    assert registry_app.store.exists(digest)
    assert await registry_app.registry.collect() == [digest]
    assert not registry_app.store.exists(digest)


async def test_a_number_is_never_given_twice(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    await registry_app.http.delete("/v1/adapters/voice?force=true")
    again = (await registry_app.push("voice", files(seed=1))).json()
    assert (again["version"], again["aliases"]) == (2, ["live"])
    assert code(await registry_app.http.post("/v1/adapters/voice/aliases/live/rollback")) == (409, "no_earlier_version")


async def test_a_collection_spares_what_is_being_proven(registry_app: RegistryApp, files: Files) -> None:
    collected: list[str] = []
    ask = registry_app.engine.logprobs

    async def collect_meanwhile(model: str, texts: list[str]) -> list[list[float]]:
        collected.extend(await registry_app.registry.collect())
        return await ask(model, texts)

    registry_app.engine.logprobs = collect_meanwhile  # type: ignore[method-assign, assignment]
    assert (await registry_app.push("voice", files(seed=1))).status_code == 201
    assert collected == []


async def test_a_suspect_is_asked_twice_and_is_corrupt_until_it_is_proven_again(
    registry_app: RegistryApp, files: Files
) -> None:
    adapter = files(seed=1)
    digest = (await registry_app.push("voice", adapter)).json()["digest"]
    registry_app.registry.report_failure(digest)
    await registry_app.registry.wait_idle()
    assert registry_app.catalog.resolve(ADMIN, "voice").digest == digest  # its probes are well

    registry_app.engine.not_finite.add(digest)
    registry_app.engine.asked.clear()
    for _ in range(10):
        registry_app.registry.report_failure(digest)
    await registry_app.registry.wait_idle()
    assert registry_app.engine.asked == [digest, digest, BASE]
    with pytest.raises(Conflict) as raised:
        registry_app.catalog.resolve(ADMIN, "voice")
    assert raised.value.code == "version_corrupt"
    assert code(await registry_app.http.post("/v1/adapters/voice/versions/1/prove")) == (422, "logprobs_not_finite")

    registry_app.engine.not_finite.clear()
    proven = await registry_app.http.post("/v1/adapters/voice/versions/1/prove")
    assert (proven.status_code, proven.json()["servable"]) == (200, "ok")
    assert registry_app.catalog.resolve(ADMIN, "voice").digest == digest


async def test_to_prove_again_moves_no_alias_back(registry_app: RegistryApp, files: Files) -> None:
    first = (await registry_app.push("voice", files(seed=1), alias="live")).json()["digest"]
    second = (await registry_app.push("voice", files(seed=2), alias="live")).json()["digest"]
    registry_app.engine.not_finite.add(first)
    registry_app.registry.report_failure(first)
    await registry_app.registry.wait_idle()
    registry_app.engine.not_finite.clear()
    assert (await registry_app.http.post("/v1/adapters/voice/versions/1/prove")).json()["servable"] == "ok"
    assert registry_app.catalog.resolve(ADMIN, "voice").digest == second


@pytest.mark.parametrize(("alias", "expected"), [(None, {"live": 2}), ("beta", {"live": 2, "beta": 1})])
async def test_a_corrupt_version_that_is_pushed_again_without_waiting_gets_the_alias_of_this_push_alone(
    registry_app: RegistryApp, files: Files, alias: str | None, expected: dict[str, int]
) -> None:
    adapter = files(seed=1)
    digest = (await registry_app.push("voice", adapter, alias="live")).json()["digest"]
    await registry_app.push("voice", files(seed=2), alias="live")
    registry_app.engine.not_finite.add(digest)
    registry_app.registry.report_failure(digest)
    await registry_app.registry.wait_idle()
    registry_app.engine.not_finite.clear()
    asked = {} if alias is None else {"alias": alias}
    assert (await registry_app.push("voice", adapter, query="?wait=false", **asked)).status_code == 202
    await registry_app.registry.wait_idle()
    shown = (await registry_app.http.get("/v1/adapters/voice")).json()
    assert shown["aliases"] == expected
    assert (await registry_app.http.get("/v1/adapters/voice/versions/1")).json()["servable"] == "ok"


async def test_a_second_push_of_what_is_being_proven_may_ask_for_an_alias(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, going_on = files(seed=1), asyncio.Event()
    held_up(registry_app, monkeypatch, going_on)
    for asked in ({}, {"alias": "beta"}):
        assert (await registry_app.push("voice", adapter, query="?wait=false", **asked)).status_code == 202
    going_on.set()
    await registry_app.registry.wait_idle()
    assert (await registry_app.http.get("/v1/adapters/voice")).json()["aliases"] == {"beta": 1}


@pytest.mark.parametrize("name", ["voice", "other"])
@pytest.mark.parametrize("sound", [True, False])
async def test_no_version_gets_the_proof_of_one_that_was_deleted_while_it_was_asked(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch, name: str, sound: bool
) -> None:
    """SQLite gives the row's id again."""
    going_on = asyncio.Event()
    asked = held_up(registry_app, monkeypatch, going_on)
    first = (await registry_app.push("voice", files(seed=1), query="?wait=false")).json()["digest"]
    async with asyncio.timeout(60):
        await asked.acquire()
    assert (await registry_app.http.delete("/v1/adapters/voice?force=true")).status_code == 204
    if not sound:
        registry_app.engine.not_finite.add(first)
    second = (await registry_app.push(name, files(seed=2), query="?wait=false")).json()
    assert second["state"] == "proving"
    going_on.set()
    await registry_app.registry.wait_idle()
    shown = (await registry_app.http.get(f"/v1/adapters/{name}/versions/{second['version']}")).json()
    assert (shown["state"], shown["digest"]) == ("ready", second["digest"])
    assert second["digest"] in registry_app.engine.asked, "it was asked about itself"
    assert registry_app.catalog.resolve(ADMIN, name).digest == second["digest"]


def held_up(app: RegistryApp, monkeypatch: pytest.MonkeyPatch, going_on: asyncio.Event) -> asyncio.Semaphore:
    """Have the engine answer under adapters only once ``going_on`` is set; released each time it is asked."""
    ask, asked = app.engine.logprobs, asyncio.Semaphore(0)

    async def later(model: str, texts: list[str]) -> list[list[float]]:
        if model != BASE:
            asked.release()
            await going_on.wait()
        return await ask(model, texts)

    monkeypatch.setattr(app.engine, "logprobs", later)
    return asked


async def test_a_corrupt_version_that_is_pushed_again_is_proven_again(registry_app: RegistryApp, files: Files) -> None:
    adapter = files(seed=1)
    digest = (await registry_app.push("voice", adapter)).json()["digest"]
    registry_app.engine.not_finite.add(digest)
    registry_app.registry.report_failure(digest)
    await registry_app.registry.wait_idle()
    assert code(await registry_app.push("voice", adapter)) == (422, "logprobs_not_finite")
    registry_app.engine.not_finite.clear()
    again = await registry_app.push("voice", adapter)
    assert (again.status_code, again.json()["version"], again.json()["servable"]) == (200, 1, "ok")


@pytest.mark.parametrize("state", ["down", "poisoned"])
async def test_an_engine_that_is_ill_convicts_nobody(registry_app: RegistryApp, files: Files, state: str) -> None:
    digest = (await registry_app.push("voice", files(seed=1))).json()["digest"]
    registry_app.engine.not_finite.add(digest)
    registry_app.engine.down = state == "down"
    registry_app.engine.nan_spreads = True
    registry_app.registry.report_failure(digest)
    await registry_app.registry.wait_idle()
    assert registry_app.catalog.resolve(ADMIN, "voice").digest == digest
    assert len(registry_app.engine.restarts) == (state == "poisoned")


async def test_an_adapter_that_the_engine_cannot_answer_for_is_rejected_in_the_end(
    registry_app: RegistryApp, files: Files
) -> None:
    ask = registry_app.engine.logprobs

    async def die_of_it(model: str, texts: list[str]) -> list[list[float]]:
        if model != BASE:
            raise EngineUnavailable("the engine died")
        return await ask(model, texts)

    registry_app.engine.logprobs = die_of_it  # type: ignore[method-assign, assignment]
    await registry_app.push("voice", files(seed=1), query="?wait=false")
    await registry_app.registry.wait_idle()
    shown = (await registry_app.http.get("/v1/adapters/voice/versions/1")).json()
    assert (shown["state"], shown["reason"]["code"]) == ("rejected", "engine_unavailable")


async def test_an_adapter_whose_proof_finds_no_place_in_the_engine_waits(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.registry.proving.RETRY_S", 0.01)
    ask, refusals = registry_app.engine.logprobs, 2 * ENGINE_FAILURES

    async def busy(model: str, texts: list[str]) -> list[list[float]]:
        nonlocal refusals
        if model != BASE and refusals:
            refusals -= 1
            raise Unavailable("the queue is full", code="overloaded")
        return await ask(model, texts)

    registry_app.engine.logprobs = busy  # type: ignore[method-assign, assignment]
    await registry_app.push("voice", files(seed=1), query="?wait=false")
    await registry_app.registry.wait_idle()
    shown = (await registry_app.http.get("/v1/adapters/voice/versions/1")).json()
    assert (shown["state"], refusals) == ("ready", 0)
