from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from service.access import audit
from service.access.audit import SYSTEM, Actor
from service.access.caller import Caller, Scope
from tests.unit.service.access.keys_app import KeysApp


async def entries(keys_app: KeysApp, query: str = "") -> list[dict[str, Any]]:
    answer = await keys_app.http.get(f"/v1/audit{query}")
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def test_every_change_of_a_key_is_written_down_newest_first(keys_app: KeysApp) -> None:
    began = int(time.time())
    made = (
        await keys_app.http.post("/v1/keys", json={"name": "shop", "project": "acme"}, headers={"x-request-id": "r1"})
    ).json()
    admin = await keys_app.make("ops", scopes=["admin"])
    bearer = {"authorization": f"Bearer {admin['key']}"}
    await keys_app.http.delete(f"/v1/keys/{made['id']}", headers=bearer | {"x-request-id": "r2"})
    await keys_app.http.post("/v1/keys/rotate-admin", headers=bearer)
    keys_app.http.headers["authorization"] = f"Bearer {keys_app.admin_key}"
    found = await entries(keys_app)
    assert [(row["action"], row["target"], row["key_id"], row["key_name"]) for row in found] == [
        ("key.rotate_admin", "admin", admin["id"], "ops"),
        ("key.delete", made["id"], admin["id"], "ops"),
        ("key.create", admin["id"], "admin", "admin"),
        ("key.create", made["id"], "admin", "admin"),
    ]
    assert [row["project"] for row in found] == ["default", "acme", "default", "acme"]
    assert (found[3]["request_id"], found[1]["request_id"]) == ("r1", "r2")
    assert len(found[0]["request_id"]) >= 16, "one was made where the client gave none"
    assert all(began <= row["created_at"] <= time.time() and row["object"] == "audit.entry" for row in found)
    assert (found[3]["detail"]["name"], found[3]["detail"]["scopes"]) == ("shop", ["infer"])
    assert found[1]["detail"] == {"name": "shop"}


async def test_what_was_refused_is_not_in_it(keys_app: KeysApp) -> None:
    await keys_app.http.post("/v1/keys", json={"name": ""})
    await keys_app.http.delete("/v1/keys/nobody")
    await keys_app.http.post("/v1/keys", json={"name": "a"}, headers={"authorization": "Bearer nobody"})
    assert await entries(keys_app) == []


async def test_a_revoked_key_still_has_its_name_in_it(keys_app: KeysApp) -> None:
    admin = await keys_app.make("ops", scopes=["admin"])
    await keys_app.http.post("/v1/keys", json={"name": "a"}, headers={"authorization": f"Bearer {admin['key']}"})
    await keys_app.http.delete(f"/v1/keys/{admin['id']}")
    assert [(row["action"], row["key_name"]) for row in await entries(keys_app)] == [
        ("key.delete", "admin"),
        ("key.create", "ops"),
        ("key.create", "admin"),
    ]


async def test_a_note_stands_and_falls_with_its_change(keys_app: KeysApp) -> None:
    def works(db: sa.Connection) -> None:
        audit.note(db, Actor("key_x", "acme", "r"), "alias.promote", "voice:live", {"version": 3})

    def fails(db: sa.Connection) -> None:
        works(db)
        raise LookupError

    await keys_app.database.run(works)
    with pytest.raises(LookupError):
        await keys_app.database.run(fails)
    await keys_app.database.run(
        lambda db: audit.note(db, replace(SYSTEM, project="globex"), "version.delete", "voice@1")
    )
    newest, oldest = await entries(keys_app)
    assert (newest["key_id"], newest["key_name"], newest["project"], newest["detail"]) == (
        "system",
        "system",
        "globex",
        None,
    )
    assert (oldest["key_id"], oldest["key_name"], oldest["detail"]) == ("key_x", None, {"version": 3})
    assert (oldest["target"], oldest["request_id"]) == ("voice:live", "r")


async def test_it_is_paged_and_filtered(keys_app: KeysApp) -> None:
    def write(db: sa.Connection) -> None:
        for number in range(6):
            actor = Actor("admin", ("acme", "globex")[number % 2])
            audit.note(db, actor, ("alias.promote", "adapter.push")[number // 3], f"t{number}")

    await keys_app.database.run(write)
    page = (await keys_app.http.get("/v1/audit?limit=4")).json()
    assert ([row["target"] for row in page["data"]], page["has_more"]) == (["t5", "t4", "t3", "t2"], True)
    page = (await keys_app.http.get(f"/v1/audit?limit=4&after={page['last_id']}")).json()
    assert ([row["target"] for row in page["data"]], page["has_more"]) == (["t1", "t0"], False)
    assert [row["target"] for row in await entries(keys_app, "?project=acme")] == ["t4", "t2", "t0"]
    assert [row["target"] for row in await entries(keys_app, "?action=adapter.push")] == ["t5", "t4", "t3"]
    assert [row["target"] for row in await entries(keys_app, "?action=adapter.push&project=globex")] == ["t5", "t3"]
    assert await entries(keys_app, "?project=nobody") == []
    for wrong in ("after=x", "after=0", "limit=0", "limit=101"):
        assert (await keys_app.http.get(f"/v1/audit?{wrong}")).status_code == 400


def test_an_actor_is_the_caller_where_it_acts() -> None:
    caller = Caller("key_1", "acme", frozenset({Scope.ADAPTERS}))
    assert Actor.of(caller, "r1") == Actor("key_1", "acme", "r1")
    assert Actor.of(caller).request_id is None
