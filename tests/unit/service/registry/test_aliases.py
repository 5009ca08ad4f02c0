"""Aliases that are split over several versions, seen through the routes and the catalog."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from adapters.store import WEIGHTS_FILE
from service.errors import Conflict, ModelNotFound
from service.inference.models import list_models, show_model
from service.registry.split import position_of
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import ADMIN, RegistryApp
from tests.unit.service.registry.engine import BASE

Files = Callable[..., AdapterFiles]
LIVE = "/v1/adapters/voice/aliases/live"


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def three_versions(registry_app: RegistryApp, files: Files) -> list[str]:
    """Pushes voice@1 to voice@3, of which the first is live; their digests."""
    return [(await registry_app.push("voice", files(seed=seed))).json()["digest"] for seed in (1, 2, 3)]


async def split(registry_app: RegistryApp, weights: dict[str, Any]) -> httpx.Response:
    return await registry_app.http.put(LIVE, json={"split": weights})


def answering(registry_app: RegistryApp, requests: int = 200, sticky: str | None = None) -> Counter[int | None]:
    return Counter(registry_app.catalog.resolve(ADMIN, "voice", sticky=sticky).version for _ in range(requests))


async def test_a_split_answers_with_all_its_versions_and_warms_them_first(
    registry_app: RegistryApp, files: Files
) -> None:
    digests = await three_versions(registry_app, files)
    registry_app.engine.asked.clear()
    moved = await split(registry_app, {"3": 50, "2": 50})
    assert moved.status_code == 200, moved.text
    assert (moved.json()["version"], moved.json()["split"]) == (None, {"2": 50, "3": 50})
    assert registry_app.engine.asked == digests[1:]
    assert set(answering(registry_app)) == {2, 3}
    seen = registry_app.catalog.resolve(ADMIN, "voice")
    assert (seen.digest, seen.name) == (digests[(seen.version or 0) - 1], f"voice@{seen.version}")
    assert registry_app.catalog.resolve(ADMIN, "voice@1").version == 1


async def test_an_id_keeps_its_version_and_moves_only_with_the_border(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    ids = [f"user-{number}" for number in range(300)]

    def chosen() -> dict[str, int | None]:
        return {sticky: registry_app.catalog.resolve(ADMIN, "voice", sticky=sticky).version for sticky in ids}

    await split(registry_app, {"1": 80, "2": 20})
    before = chosen()
    assert set(before.values()) == {1, 2}
    assert chosen() == before
    assert registry_app.catalog.resolve(ADMIN, BASE, "voice", sticky=ids[0]).version == before[ids[0]]
    await split(registry_app, {"1": 60, "2": 40})
    after = chosen()
    moved = {sticky for sticky in ids if before[sticky] != after[sticky]}
    places = {sticky: position_of("default", "voice", "live", sticky) / 2**64 for sticky in ids}
    assert moved == {sticky for sticky, place in places.items() if 0.6 <= place < 0.8}
    assert moved


async def test_history_rollback_and_promote(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    await split(registry_app, {"1": 90, "2": 10})
    assert (await split(registry_app, {"2": 10, "1": 90})).status_code == 200  # the same: no move
    await registry_app.http.put(LIVE, json={"version": 2})
    assert set(answering(registry_app)) == {2}
    back = (await registry_app.http.post(f"{LIVE}/rollback")).json()
    assert (back["version"], back["split"]) == (None, {"1": 90, "2": 10})
    assert set(answering(registry_app)) == {1, 2}
    again = (await registry_app.http.post(f"{LIVE}/rollback")).json()
    assert (again["version"], again["split"]) == (1, None)
    moves = (await registry_app.http.get(LIVE)).json()["history"]
    assert [(move["version"], move["split"], move["action"]) for move in moves] == [
        (1, None, "rollback"),
        (None, {"1": 90, "2": 10}, "rollback"),
        (2, None, "promote"),
        (None, {"1": 90, "2": 10}, "split"),
        (1, None, "push"),
    ]


async def test_a_rollback_passes_over_a_split_that_lost_a_version(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    await split(registry_app, {"1": 50, "2": 50})
    await registry_app.http.put(LIVE, json={"version": 3})
    assert (await registry_app.http.delete("/v1/adapters/voice/versions/2")).status_code == 204
    assert (await registry_app.http.post(f"{LIVE}/rollback")).json()["version"] == 1


async def test_a_push_to_the_alias_ends_the_split(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    await split(registry_app, {"1": 50, "2": 50})
    assert (await registry_app.push("voice", files(seed=4), alias="live")).json()["aliases"] == ["live"]
    assert set(answering(registry_app)) == {4}
    await split(registry_app, {"1": 50, "2": 50})
    assert (await registry_app.push("voice", files(seed=4), alias="live")).status_code == 200
    assert set(answering(registry_app)) == {4}


async def test_a_split_outlives_a_restart(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    await split(registry_app, {"1": 50, "3": 50})
    again = RegistryApp(registry_app.settings.home, registry_app.base)
    async with again.run():
        assert set(answering(again)) == {1, 3}


async def test_objects_show_the_split(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    await registry_app.http.put("/v1/adapters/voice/aliases/beta", json={"version": 3})
    await split(registry_app, {"1": 90, "2": 10})
    shown = (await registry_app.http.get("/v1/adapters/voice")).json()
    assert shown["aliases"] == {"beta": 3, "live": None}
    assert shown["splits"] == {"live": {"1": 90, "2": 10}}
    assert [version["aliases"] for version in shown["versions"]] == [["live"], ["live"], ["beta"]]
    assert [card["root"] for card in list_models(registry_app.catalog, ADMIN)["data"]] == [BASE, "voice:live"]
    assert show_model(registry_app.catalog, ADMIN, "voice")["root"] == "voice:live"
    assert show_model(registry_app.catalog, ADMIN, "voice:beta")["root"] == "voice@3"


async def test_a_version_in_a_split_is_not_deleted_unless_forced_and_then_nothing_takes_over(
    registry_app: RegistryApp, files: Files
) -> None:
    await three_versions(registry_app, files)
    await registry_app.http.put("/v1/adapters/voice/aliases/beta", json={"split": {"1": 1, "2": 1}})
    assert code(await registry_app.http.delete("/v1/adapters/voice/versions/2")) == (422, "version_in_use")
    assert (await registry_app.http.delete("/v1/adapters/voice/versions/2?force=true")).status_code == 204
    with pytest.raises(ModelNotFound):
        registry_app.catalog.resolve(ADMIN, "voice:beta")
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 1


async def test_what_falls_to_a_version_that_cannot_serve_is_refused_and_never_goes_elsewhere(
    registry_app: RegistryApp, files: Files
) -> None:
    digests = await three_versions(registry_app, files)
    await split(registry_app, {"1": 50, "2": 50})
    registry_app.engine.not_finite.add(digests[1])
    registry_app.registry.report_failure(digests[1])
    await registry_app.registry.wait_idle()
    ids = [f"user-{number}" for number in range(50)]
    own = {sticky: 1 if position_of("default", "voice", "live", sticky) < 2**63 else 2 for sticky in ids}
    assert set(own.values()) == {1, 2}
    for sticky, version in own.items():
        if version == 1:
            assert registry_app.catalog.resolve(ADMIN, "voice", sticky=sticky).version == 1
        else:
            with pytest.raises(Conflict) as raised:
                registry_app.catalog.resolve(ADMIN, "voice", sticky=sticky)
            assert raised.value.code == "version_corrupt"
    assert show_model(registry_app.catalog, ADMIN, "voice")["id"] == "voice"
    assert code(await split(registry_app, {"1": 80, "2": 20})) == (409, "version_corrupt")

    registry_app.engine.not_finite.add(digests[0])
    registry_app.registry.report_failure(digests[0])
    await registry_app.registry.wait_idle()
    with pytest.raises(Conflict, match="corrupt, corrupt"):
        show_model(registry_app.catalog, ADMIN, "voice")


async def test_a_split_needs_versions_that_are_there_ready_and_sound(registry_app: RegistryApp, files: Files) -> None:
    digests = await three_versions(registry_app, files)
    assert code(await split(registry_app, {"1": 1, "9": 1})) == (404, "version_not_found")
    registry_app.engine.effect = 0
    await registry_app.push("voice", files(seed=5), query="?wait=false")
    await registry_app.registry.wait_idle()
    assert code(await split(registry_app, {"1": 1, "4": 1})) == (409, "version_not_ready")
    (registry_app.store.path(digests[2]) / WEIGHTS_FILE).write_bytes(b"short")
    assert code(await split(registry_app, {"1": 1, "3": 1})) == (409, "version_damaged")
    registry_app.engine.not_finite.add(digests[1])
    assert code(await split(registry_app, {"1": 1, "2": 1})) == (500, "adapter_not_finite")
    assert set(answering(registry_app)) == {1}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "version"),
        ({"version": 1, "split": {"1": 1, "2": 1}}, "split"),
        ({"version": None, "split": None}, "version"),
        ({"split": {"1": 1}}, "split"),
        ({"split": {"1": 1.5, "2": 1}}, "split.1"),
        ({"split": {"1": "1", "2": 1}}, "split.1"),
        ({"split": {"1": True, "2": 1}}, "split.1"),
        ({"split": {"1": 0, "2": 1}}, "split.1"),
        ({"split": [1, 2]}, "split"),
        ({"split": {"1": 1, "2": 1}, "sticky": True}, "sticky"),
    ],
)
async def test_the_body_of_a_split_is_checked(
    registry_app: RegistryApp, files: Files, body: dict[str, Any], param: str
) -> None:
    await registry_app.push("voice", files(seed=1))
    answer = await registry_app.http.put(LIVE, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_shown_alias_can_be_put_back_as_it_was(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    shown = (await split(registry_app, {"1": 1, "2": 2})).json()
    await registry_app.http.put(LIVE, json={"version": 3})
    back = await registry_app.http.put(LIVE, json={"version": shown["version"], "split": shown["split"]})
    assert back.json()["split"] == {"1": 1, "2": 2}


async def test_an_alias_moves_only_from_where_it_is_expected(registry_app: RegistryApp, files: Files) -> None:
    await three_versions(registry_app, files)
    await registry_app.http.put(LIVE, json={"version": 1})
    for stale in (2, None):
        refused = await registry_app.http.put(LIVE, json={"version": 3, "expected": stale})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "alias_moved")
    assert set(answering(registry_app)) == {1}
    moved = await registry_app.http.put(LIVE, json={"version": 3, "expected": 1})
    assert (moved.status_code, set(answering(registry_app))) == (200, {3})
    again = await registry_app.http.put(
        LIVE, json={"version": 3, "expected": 1}
    )  # sent twice, it is where it was to go
    assert again.status_code == 200
    await registry_app.http.delete(LIVE)
    assert (await registry_app.http.put(LIVE, json={"version": 2, "expected": None})).status_code == 200
