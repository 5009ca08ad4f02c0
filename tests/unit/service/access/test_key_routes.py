from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from service.access.audit import SYSTEM
from service.access.caller import Scope
from service.access.records import KeyDraft
from tests.unit.service.access.keys_app import KeysApp

ALL = {"infer", "adapters", "knowledge", "train", "admin"}


async def test_a_key_is_shown_once(keys_app: KeysApp) -> None:
    made = await keys_app.make("shop", project="acme")
    key = made.pop("key")
    assert key.startswith(made["hint"].removesuffix("…"))
    assert made == {
        "object": "key",
        "id": made["id"],
        "hint": key[:7] + "…",
        "name": "shop",
        "project": "acme",
        "scopes": ["infer"],
        "adapters": None,
        "stores": None,
        "filters": {},
        "limits": {},
        "background": False,
        "parent_key_id": None,
        "expires_at": None,
        "created_at": made["created_at"],
    }
    assert (await keys_app.http.get(f"/v1/keys/{made['id']}")).json() == made
    assert (await keys_app.http.get("/v1/keys")).json()["data"] == [made]
    audit = (await keys_app.http.get("/v1/audit")).text
    assert made["id"] in audit
    assert key not in audit


async def test_the_answer_with_the_key_is_kept_by_no_cache(keys_app: KeysApp) -> None:
    answer = await keys_app.http.post("/v1/keys", json={"name": "a"})
    assert answer.headers["cache-control"] == "no-store"
    assert (await keys_app.http.get(answer.headers["location"])).json()["id"] == answer.json()["id"]
    assert (await keys_app.http.post("/v1/keys/rotate-admin")).headers["cache-control"] == "no-store"


async def test_all_that_a_key_may_be_given(keys_app: KeysApp) -> None:
    given = {
        "project": "acme",
        "scopes": ["train", "adapters", "train"],
        "adapters": ["brand-*", "v?"],
        "stores": [],
        "limits": {"requests_per_minute": 1, "tokens_per_minute": 2, "concurrent": 3, "tokens_per_day": None},
        "expires_at": int(time.time()) + 60,
    }
    made = await keys_app.make("full", **given)
    assert made["scopes"] == ["adapters", "train"]
    assert made["limits"] == {"requests_per_minute": 1, "tokens_per_minute": 2, "concurrent": 3}
    assert {name: made[name] for name in ("project", "adapters", "stores", "expires_at")} == {
        name: given[name] for name in ("project", "adapters", "stores", "expires_at")
    }
    assert (await keys_app.get("/who", made["key"])).json() == {"key_id": made["id"], "project": "acme"}


async def test_a_key_belongs_to_the_body_s_project_else_to_the_header_s_else_to_default(keys_app: KeysApp) -> None:
    in_acme = {"openai-project": "acme"}
    for body, headers, project in (
        ({}, {}, "default"),
        ({}, in_acme, "acme"),
        ({"project": "globex"}, in_acme, "globex"),
        ({"scopes": ["admin"]}, in_acme, "default"),
    ):
        answer = await keys_app.http.post("/v1/keys", json={"name": "k", **body}, headers=headers)
        assert answer.json()["project"] == project
        assert (await keys_app.get("/who", answer.json()["key"])).json()["project"] == project


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": 7}, "name"),
        ({"name": "k", "project": "Acme"}, "project"),
        ({"name": "k", "project": ""}, "project"),
        ({"name": "k", "project": "acme", "scopes": ["admin"]}, "project"),
        ({"name": "k", "scopes": []}, "scopes"),
        ({"name": "k", "scopes": ["infer", "root"]}, "scopes.1"),
        ({"name": "k", "scopes": "infer"}, "scopes"),
        ({"name": "k", "adapters": ["UPPER*"]}, "adapters"),
        ({"name": "k", "adapters": ["[ab]*"]}, "adapters"),
        ({"name": "k", "adapters": ["a"] * 65}, "adapters"),
        ({"name": "k", "stores": [1]}, "stores.0"),
        ({"name": "k", "scopes": ["admin"], "stores": ["a"]}, "stores"),
        ({"name": "k", "scopes": ["admin"], "filters": {"customer": "c-1"}}, "filters"),
        ({"name": "k", "scopes": ["infer", "knowledge"], "filters": {"customer": "c-1"}}, "filters"),
        ({"name": "k", "scopes": ["train"], "filters": {"customer": "c-1"}}, "filters"),
        ({"name": "k", "filters": {"customer": ""}}, "filters.customer"),
        ({"name": "k", "filters": {"customer": 2**53 + 2}}, "filters.customer"),
        ({"name": "k", "filters": {"": "c-1"}}, "filters."),
        ({"name": "k", "filters": {f"a{number}": 1 for number in range(9)}}, "filters"),
        ({"name": "k", "filters": ["customer"]}, "filters"),
        ({"name": "k", "limits": {"tokens": 1}}, "limits.tokens"),
        ({"name": "k", "limits": {"concurrent": 0}}, "limits.concurrent"),
        ({"name": "k", "limits": {"concurrent": 1.5}}, "limits.concurrent"),
        ({"name": "k", "expires_at": 1}, "expires_at"),
        ({"name": "k", "expires_at": 10**15}, "expires_at"),
        ({"name": "k", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "k", "background": True}, "background"),
        ({"name": "k", "parent_key_id": "admin"}, "parent_key_id"),
        ({"name": "k", "id": "key_mine"}, "id"),
    ],
)
async def test_what_is_wrong_in_a_body_is_named(keys_app: KeysApp, body: dict[str, Any], param: str) -> None:
    answer = await keys_app.http.post("/v1/keys", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await keys_app.http.get("/v1/keys")).json()["data"] == []


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b"", 400), (b" " * 70_000, 413)])
async def test_what_is_no_body(keys_app: KeysApp, body: bytes, status: int) -> None:
    assert (await keys_app.http.post("/v1/keys", content=body)).status_code == status


async def test_authorisation_comes_before_everything_else(keys_app: KeysApp) -> None:
    made = await keys_app.make(scopes=sorted(ALL - {"admin"}))
    requests = [
        ("POST", "/v1/keys", b"{broken"),
        ("POST", "/v1/keys", b" " * 70_000),
        ("POST", "/v1/keys/rotate-admin", b""),
        ("GET", "/v1/keys?limit=nonsense", b""),
        ("GET", f"/v1/keys/{made['id']}", b""),
        ("GET", "/v1/keys/key_that_never_was", b""),
        ("DELETE", f"/v1/keys/{made['id']}", b""),
        ("DELETE", "/v1/keys/key_that_never_was", b""),
        ("GET", "/v1/audit?after=nonsense", b""),
    ]
    for method, path, body in requests:
        answer = await keys_app.http.request(method, path, content=body, headers={"authorization": "Bearer nobody"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
        assert answer.headers["www-authenticate"].startswith("Bearer"), path
        answer = await keys_app.http.request(
            method, path, content=body, headers={"authorization": f"Bearer {made['key']}"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope"), path
        assert "`admin`" in answer.json()["error"]["message"], path
    assert (await keys_app.get("/who", made["key"])).status_code == 200


async def test_a_403_names_the_scope_that_is_missing(keys_app: KeysApp) -> None:
    neither, one = await keys_app.make(), await keys_app.make(scopes=["adapters"])
    both, admin = await keys_app.make(scopes=["adapters", "train"]), await keys_app.make(scopes=["admin"])
    for made, named in ((neither, "`adapters`"), (one, "`train`")):
        answer = await keys_app.get("/adapters-and-train", made["key"])
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
        assert named in answer.json()["error"]["message"]
    for made in (both, admin):
        assert (await keys_app.get("/adapters-and-train", made["key"])).json() == made["id"]


async def test_a_deleted_key_is_401_on_the_next_request(keys_app: KeysApp) -> None:
    made, other = await keys_app.make(), await keys_app.make()
    assert (await keys_app.get("/who", made["key"])).status_code == 200
    answer = await keys_app.http.delete(f"/v1/keys/{made['id']}")
    assert (answer.status_code, answer.json()) == (200, {"object": "key", "id": made["id"], "deleted": True})
    assert (await keys_app.get("/who", made["key"])).status_code == 401
    assert (await keys_app.get("/who", other["key"])).status_code == 200
    for method in ("GET", "DELETE"):
        gone = await keys_app.http.request(method, f"/v1/keys/{made['id']}")
        never = await keys_app.http.request(method, "/v1/keys/key_never")
        assert gone.status_code == never.status_code == 404
        assert gone.text.replace(made["id"], "*") == never.text.replace("key_never", "*")


async def test_the_admin_key_is_no_key_of_the_list(keys_app: KeysApp) -> None:
    assert (await keys_app.http.delete("/v1/keys/admin")).status_code == 404
    assert (await keys_app.http.get("/v1/keys")).json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip


async def test_an_admin_that_revokes_itself_is_out(keys_app: KeysApp) -> None:
    made = await keys_app.make(scopes=["admin"])
    bearer = {"authorization": f"Bearer {made['key']}"}
    assert (await keys_app.http.delete(f"/v1/keys/{made['id']}", headers=bearer)).status_code == 200
    assert (await keys_app.http.get("/v1/keys", headers=bearer)).status_code == 401


async def test_lists_are_paged_oldest_first_over_all_projects_or_one(keys_app: KeysApp) -> None:
    ids = [(await keys_app.make(f"k{n}", project=("acme", "globex")[n % 2]))["id"] for n in range(5)]
    page = (await keys_app.http.get("/v1/keys?limit=2")).json()
    assert ([item["id"] for item in page["data"]], page["has_more"], page["last_id"]) == (ids[:2], True, ids[1])
    assert (await keys_app.http.delete(f"/v1/keys/{ids[1]}")).status_code == 200
    page = (await keys_app.http.get(f"/v1/keys?limit=3&after={ids[1]}")).json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (ids[2:], False)
    page = (await keys_app.http.get("/v1/keys?project=acme")).json()
    assert [item["id"] for item in page["data"]] == ids[0::2]
    assert (await keys_app.http.get("/v1/keys?project=nobody")).json()["data"] == []
    for wrong in ("after=nobody", "limit=0", "limit=101", "limit=x"):
        answer = await keys_app.http.get(f"/v1/keys?{wrong}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, wrong.partition("=")[0])


async def test_the_admin_key_is_rotated_over_http(keys_app: KeysApp) -> None:
    old = keys_app.admin_key
    answer = await keys_app.http.post("/v1/keys/rotate-admin")
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["key"]) == ("admin", keys_app.admin_key)
    assert (await keys_app.get("/who", old)).status_code == 401
    assert (await keys_app.get("/who", keys_app.admin_key)).json() == {"key_id": "admin", "project": "default"}


async def test_a_given_admin_key_is_not_rotated_over_http(tmp_path: Path) -> None:
    async with KeysApp(tmp_path, given="given-in-the-settings").run() as keys_app:
        answer = await keys_app.http.post("/v1/keys/rotate-admin")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "admin_key_given")


@pytest.mark.parametrize("scopes", [["infer"], ["train", "adapters"], ["admin"]])
async def test_every_key_may_revoke_itself_and_those_under_it(keys_app: KeysApp, scopes: list[str]) -> None:
    made, other = await keys_app.make("own", scopes=scopes), await keys_app.make("other")
    draft = KeyDraft("child", "default", frozenset({Scope.INFER} & set(scopes)), parent_key_id=made["id"])
    _, child = await keys_app.keys.mint(SYSTEM, draft)
    answer = await keys_app.http.delete("/v1/keys/current", headers={"authorization": f"Bearer {made['key']}"})
    assert answer.json() == {"object": "key", "id": made["id"], "deleted": True}
    for key, status in ((made["key"], 401), (child, 401), (other["key"], 200)):
        assert (await keys_app.get("/who", key)).status_code == status
    entry = (await keys_app.http.get("/v1/audit")).json()["data"][0]
    assert (entry["action"], entry["target"], entry["key_id"]) == ("key.delete", made["id"], made["id"])


async def test_the_admin_key_does_not_revoke_itself(keys_app: KeysApp) -> None:
    answer = await keys_app.http.delete("/v1/keys/current")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "admin_key")
    assert (await keys_app.get("/who", keys_app.admin_key)).status_code == 200
