"""What a key's globs and its project hide answers as what does not exist; what it may not push is said clearly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import httpx
import pytest

from service.access.audit import SYSTEM
from service.access.caller import DEFAULT_PROJECT, Caller, Scope
from service.access.records import KeyDraft
from service.errors import HatrackError, ModelNotFound
from service.inference.models import list_models, show_model
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import ADMIN, RegistryApp
from tests.unit.service.registry.engine import BASE

Files = Callable[..., AdapterFiles]
TEAM = Caller("key", DEFAULT_PROJECT, frozenset({Scope.INFER}), adapters=("team-*", "shared"))
NAMED_ROUTES = [
    ("GET", "", {}),
    ("DELETE", "", {}),
    ("DELETE", "?force=true", {}),
    ("GET", "/versions/1", {}),
    ("DELETE", "/versions/1", {}),
    ("POST", "/versions/1/prove", {}),
    ("GET", "/versions/1/files/config", {}),
    ("GET", "/versions/1/files/weights", {}),
    ("GET", "/aliases/live", {}),
    ("PUT", "/aliases/live", {"json": {"version": 1}}),
    ("PUT", "/aliases/live", {"json": {"split": {"1": 1, "2": 1}}}),
    ("PUT", "/aliases/live", {"content": b"{"}),
    ("PUT", "/aliases/NO", {"json": {"version": 1}}),
    ("DELETE", "/aliases/live", {}),
    ("POST", "/aliases/live/rollback", {}),
    ("PUT", "/pin", {}),
    ("DELETE", "/pin", {}),
]


def said(call: Callable[[], object]) -> bytes:
    with pytest.raises(HatrackError) as raised:
        call()
    return bytes(str(raised.value.status), "ascii") + raised.value.body()


async def test_resolving_what_a_key_may_not_use_is_what_does_not_exist_to_the_byte(
    registry_app: RegistryApp, files: Files
) -> None:
    await registry_app.push("team-a", files(seed=1))
    await registry_app.push("hidden", files(seed=2))
    await registry_app.push("unset", files(seed=3), alias="")
    catalog = registry_app.catalog
    assert catalog.resolve(TEAM, "team-a").version == 1
    assert catalog.resolve(TEAM, BASE, "team-a").version == 1
    assert catalog.resolve(TEAM, BASE).engine_model == BASE, "the base needs no glob"
    for tail in ("", "@1", "@9", ":live", ":beta"):
        for there in ("hidden", "unset"):
            hidden = said(lambda name=there + tail: catalog.resolve(TEAM, name))
            absent = said(lambda name="absent" + tail: catalog.resolve(TEAM, name))
            assert hidden.replace(there.encode(), b"absent") == absent
        beside = said(lambda name="hidden" + tail: catalog.resolve(TEAM, BASE, name))
        assert beside.replace(b"hidden", b"absent") == said(
            lambda name="absent" + tail: catalog.resolve(TEAM, BASE, name)
        )
    nothing = replace(TEAM, adapters=())
    with pytest.raises(ModelNotFound):
        catalog.resolve(nothing, "team-a")


async def test_models_are_those_that_the_key_may_use(registry_app: RegistryApp, files: Files) -> None:
    for seed, name in enumerate(("team-a", "hidden", "shared", "team-b")):
        await registry_app.push(name, files(seed=seed))
    ids = [card["id"] for card in list_models(registry_app.catalog, TEAM)["data"]]
    assert (ids[0], sorted(ids[1:])) == (BASE, ["shared", "team-a", "team-b"])
    assert len(list_models(registry_app.catalog, ADMIN)["data"]) == 5
    assert show_model(registry_app.catalog, TEAM, "team-a")["root"] == "team-a@1"
    hidden = said(lambda: show_model(registry_app.catalog, TEAM, "hidden"))
    assert hidden.replace(b"hidden", b"absent") == said(lambda: show_model(registry_app.catalog, TEAM, "absent"))


@pytest.mark.parametrize("whose", ["globs", "project"])
async def test_every_route_hides_alike(registry_app: RegistryApp, files: Files, whose: str) -> None:
    for seed in (1, 2):
        await registry_app.push("hidden", files(seed=seed))
    key = await registry_app.key(adapters=("team-*",)) if whose == "globs" else await registry_app.key("acme")
    for method, path, body in NAMED_ROUTES:
        answers = [
            await registry_app.http.request(method, f"/v1/adapters/{name}{path}", headers=key, **body)
            for name in ("hidden", "absent")
        ]
        there, absent = (answer.content.replace(b"hidden", b"absent") for answer in answers)
        assert there == absent, path
        assert answers[0].status_code == answers[1].status_code
        if whose == "globs":
            assert answers[0].status_code == 404, path
    assert set((await registry_app.http.get("/v1/adapters/hidden")).json()["aliases"]) == {"live"}
    assert len((await registry_app.http.get("/v1/adapters/hidden")).json()["versions"]) == 2


async def test_lists_leave_out_what_is_hidden_and_page_without_gaps(registry_app: RegistryApp, files: Files) -> None:
    names = ["team-a", "hidden-1", "team-b", "hidden-2", "hidden-3", "team-c"]
    for seed, name in enumerate(names):
        await registry_app.push(name, files(seed=seed))
    key = await registry_app.key(adapters=("team-*",))

    async def page(query: str) -> tuple[list[str], bool]:
        answer = (await registry_app.http.get(f"/v1/adapters{query}", headers=key)).json()
        return [item["name"] for item in answer["data"]], answer["has_more"]

    assert await page("") == (["team-a", "team-b", "team-c"], False)
    assert await page("?limit=2") == (["team-a", "team-b"], True)
    assert await page("?limit=2&after=team-b") == (["team-c"], False)
    assert await page("?limit=3") == (["team-a", "team-b", "team-c"], False)
    hidden = await registry_app.http.get("/v1/adapters?after=hidden-1", headers=key)
    assert hidden.content == (await registry_app.http.get("/v1/adapters?after=absent", headers=key)).content
    assert hidden.status_code == 400


@pytest.mark.parametrize("name", ["hidden", "new"])
async def test_a_push_outside_the_globs_is_refused_by_name_whatever_is_there(
    registry_app: RegistryApp, files: Files, name: str
) -> None:
    await registry_app.push("hidden", files(seed=1))
    key = await registry_app.key(adapters=("team-*", "shared"))
    refused = await registry_app.push(name, files(seed=2), headers=key)
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("adapter_not_allowed", "name")
    assert error["message"] == f"the API key may only push adapters whose names match `team-*`, `shared`; got `{name}`"
    assert registry_app.leftovers() == []
    assert (await registry_app.push("team-a", files(seed=2), headers=key)).status_code == 201


async def test_a_push_outside_the_globs_ends_before_its_weights(registry_app: RegistryApp, files: Files) -> None:
    key = await registry_app.key(adapters=("team-*",))
    weights = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal weights
        yield b'--cut\r\nContent-Disposition: form-data; name="name"\r\n\r\nhidden\r\n'
        yield b'--cut\r\nContent-Disposition: form-data; name="weights"; filename="w.safetensors"\r\n\r\n'
        for _ in range(64):
            weights += 1
            yield b"\0" * 65536

    headers = key | {"content-type": "multipart/form-data; boundary=cut"}
    refused = await registry_app.http.post("/v1/adapters", content=body(), headers=headers)
    assert refused.status_code == 403, refused.text
    assert weights < 64
    assert registry_app.leftovers() == []


async def test_a_key_without_the_scope_learns_nothing_of_its_body(registry_app: RegistryApp) -> None:
    _, text = await registry_app.keys.mint(SYSTEM, KeyDraft("infers", DEFAULT_PROJECT, frozenset({Scope.INFER})))
    key = {"authorization": f"Bearer {text}"}
    for method, path, body in [
        ("PUT", "/voice/aliases/live", b"{"),
        ("POST", "", b"nothing"),
        ("PUT", "/voice/pin", b""),
    ]:
        refused = await registry_app.http.request(
            method, f"/v1/adapters{path}?limit=x&wait=x", content=body, headers=key
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
        assert "adapters" in refused.json()["error"]["message"]


async def test_two_projects_have_an_adapter_of_the_same_name_each(registry_app: RegistryApp, files: Files) -> None:
    acme = await registry_app.key("acme")
    same = files(seed=1)
    ours = (await registry_app.push("voice", same)).json()
    theirs = await registry_app.push("voice", files(seed=2), headers=acme)
    assert (theirs.status_code, theirs.json()["version"]) == (201, 1)
    again = await registry_app.push("voice", same, headers=acme)
    assert (again.status_code, again.json()["version"]) == (201, 2), "another project's version is none of ours"
    of_acme = replace(TEAM, project="acme", adapters=None)
    assert registry_app.catalog.resolve(ADMIN, "voice").digest == ours["digest"]
    assert registry_app.catalog.resolve(of_acme, "voice").digest == theirs.json()["digest"]
    with pytest.raises(ModelNotFound):
        registry_app.catalog.resolve(ADMIN, "voice@2")
    assert (await registry_app.http.delete("/v1/adapters/voice?force=true", headers=acme)).status_code == 204
    assert registry_app.catalog.resolve(ADMIN, "voice").digest == ours["digest"]
    assert registry_app.store.exists(ours["digest"])
    assert await registry_app.registry.collect() == [theirs.json()["digest"]]


async def test_an_admin_acts_in_another_project_that_exists(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.key("acme")
    pushed = await registry_app.push("voice", files(seed=1), headers={"openai-project": "acme"})
    assert pushed.status_code == 201, pushed.text
    assert (await registry_app.http.get("/v1/adapters/voice")).status_code == 404
    shown: httpx.Response = await registry_app.http.get("/v1/adapters/voice", headers={"openai-project": "acme"})
    assert shown.json()["name"] == "voice"
    lost = await registry_app.push("voice", files(seed=1), headers={"openai-project": "nobody"})
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "project_not_found")
